"""The paths of the manifests: the sources of each overlay, and its committed rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from deploy.local.errors import RunnerError

DIRECTORY: Final = Path(__file__).resolve().parent
OVERLAYS: Final = ("local", "multi-replica-test", "production")


class ManifestsError(RunnerError):
    """A manifest is wrong or missing. The text is shown to the person who changed it."""


def rendered(overlay: str) -> Path:
    """The committed rendering."""
    return DIRECTORY / "rendered" / f"{overlay}.yaml"


def objects(overlay: str) -> list[dict[str, Any]]:
    """The objects of the committed rendering. Raises ManifestsError if it does not exist."""
    try:
        text = rendered(overlay).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestsError(f"{overlay} is not rendered: run `make manifests`") from None
    return [each for each in yaml.safe_load_all(text) if each is not None]
