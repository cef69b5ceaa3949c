"""Renders the overlays with ``kubectl kustomize``, which needs no cluster.

The renderings are committed: a review shows what a change of a base does to each overlay, and the
checks and tests read exactly what is applied to a cluster.
"""

from __future__ import annotations

import difflib
import shutil
import subprocess
from typing import Final

from deploy.kubernetes import manifests
from deploy.kubernetes.manifests import ManifestsError, rendered

LIMIT_S: Final = 60.0


def kubectl() -> str | None:
    """The path of kubectl, or None if it is not installed."""
    return shutil.which("kubectl")


def render(program: str, overlay: str) -> str:
    """The rendered overlay. Raises ManifestsError with the error output of kubectl."""
    result = subprocess.run(
        [program, "kustomize", str(manifests.DIRECTORY / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if result.returncode != 0:
        raise ManifestsError(f"{overlay}: {result.stderr.strip()}")
    return result.stdout


def write(program: str, overlay: str) -> None:
    """Write the rendering of the sources."""
    rendered(overlay).parent.mkdir(exist_ok=True)
    rendered(overlay).write_text(render(program, overlay), encoding="utf-8")


def drift(program: str, overlay: str) -> list[str]:
    """The diff from the committed rendering to that of the sources; empty if they are equal."""
    file = rendered(overlay)
    committed = file.read_text(encoding="utf-8") if file.is_file() else ""
    return list(
        difflib.unified_diff(
            committed.splitlines(),
            render(program, overlay).splitlines(),
            f"rendered/{file.name}",
            f"overlays/{overlay}",
            lineterm="",
            n=1,
        )
    )
