"""The commit that an image is built from: for its labels and its SBOM."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

from deploy.local.plan import PROJECT


@dataclass(frozen=True)
class Revision:
    """A commit, and when it was made: a build's only time, so that it can be repeated."""

    commit: str = "unknown"
    """``<hash>-dirty`` if files differ from it."""
    made: datetime = datetime(1980, 1, 1, tzinfo=UTC)

    @classmethod
    def of_checkout(cls) -> Revision:
        """That of the project's directory; an unknown one without git or a repository."""
        described = _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
        made = _git("show", "--no-patch", "--format=%cI", "HEAD")
        return cls(described, datetime.fromisoformat(made)) if described and made else cls()


def _git(*arguments: str) -> str:
    """What git prints; nothing if it fails or is not there."""
    with contextlib.suppress(OSError):
        return subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
        ).stdout.strip()
    return ""
