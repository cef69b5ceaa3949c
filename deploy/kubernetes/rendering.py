"""The renderings of the overlays, made by ``kubectl kustomize``, which needs no cluster.

They are committed so that a review sees what a change of a base does to each overlay, and so that
the checks and the tests read what a cluster would be given.
"""

from __future__ import annotations

import difflib
import shutil
import subprocess
from typing import Final

from deploy.kubernetes.manifests import ManifestsError, rendered, source

LIMIT_S: Final = 60.0
LINES_MAX: Final = 40
"""As many lines of a difference are told."""


def kubectl() -> str | None:
    """The program, or None where it is not installed."""
    return shutil.which("kubectl")


def render(program: str, overlay: str) -> str:
    """The overlay as it would be applied. Raises ManifestsError with kubectl's own words."""
    result = subprocess.run(
        [program, "kustomize", str(source(overlay))],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if result.returncode != 0:
        raise ManifestsError(f"{overlay}: {result.stderr.strip()}")
    return result.stdout


def write(program: str, overlay: str) -> None:
    """Make the committed rendering what the sources say."""
    rendered(overlay).parent.mkdir(exist_ok=True)
    rendered(overlay).write_text(render(program, overlay), encoding="utf-8")


def drift(program: str, overlay: str) -> list[str]:
    """How the committed rendering differs from the sources: lines of a diff, or none."""
    file = rendered(overlay)
    committed = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = list(
        difflib.unified_diff(
            committed.splitlines(),
            render(program, overlay).splitlines(),
            f"rendered/{file.name}",
            f"overlays/{overlay}",
            lineterm="",
            n=1,
        )
    )
    return lines[:LINES_MAX] + ["…"] * (len(lines) > LINES_MAX)
