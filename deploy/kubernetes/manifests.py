"""Where the manifests are: the sources of each overlay, and what kubectl made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

DIRECTORY: Final = Path(__file__).resolve().parent
OVERLAYS: Final = ("local", "multi-replica-test", "production")


class ManifestsError(Exception):
    """The manifests are not as they have to be. Its text is for whoever changed them."""


def source(overlay: str) -> Path:
    """The directory that ``kubectl kustomize`` is given."""
    return DIRECTORY / "overlays" / overlay


def rendered(overlay: str) -> Path:
    """The committed rendering."""
    return DIRECTORY / "rendered" / f"{overlay}.yaml"


def objects(overlay: str) -> list[dict[str, Any]]:
    """Every object of the committed rendering. Raises ManifestsError if there is none."""
    try:
        text = rendered(overlay).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestsError(f"{overlay} is not rendered: run `make manifests`") from None
    return [each for each in yaml.safe_load_all(text) if each is not None]


def told(each: dict[str, Any]) -> str:
    """An object's name in messages, as kubectl writes it."""
    return f"{each['kind'].lower()}/{each['metadata']['name']}"
