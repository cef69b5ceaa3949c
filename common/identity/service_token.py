"""The token that a service sends with its calls to others, from a file that is read again.

Whoever issues it replaces the file before the token expires, as Kubernetes does with a projected
one. Calls read no disk: a task reads the file.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, TypeAlias

import structlog

Metadata: TypeAlias = tuple[tuple[str, str], ...]

REFRESH_S: Final = 10.0
"""Time between two reads of the file."""

_log = structlog.stdlib.get_logger()


class ServiceToken:
    """The token in a file, as the metadata of a call."""

    def __init__(self, file: Path) -> None:
        """Raises OSError if the file cannot be read, and ValueError if it has no token."""
        self._file = file
        self.metadata = _metadata(file)
        """What a call sends."""
        self._problem = ""

    async def read_again(self) -> None:
        """Send what the file has now; if it cannot be read, what it had before."""
        problem = ""
        try:
            self.metadata = await asyncio.to_thread(_metadata, self._file)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        if problem and problem != self._problem:
            _log.warning("service_token_not_read", file=str(self._file), reason=problem)
        self._problem = problem


def _metadata(file: Path) -> Metadata:
    token = file.read_text(encoding="ascii").strip()
    if not token or not token.isprintable() or " " in token:
        raise ValueError("has no token")
    return (("authorization", f"Bearer {token}"),)
