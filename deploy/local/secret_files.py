"""Small JSON files that only their owner may read, written all or nothing."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from deploy.local.errors import RunnerError

if TYPE_CHECKING:
    from pathlib import Path


def new_password() -> str:
    """Return a password that needs no quoting in SQL, URLs or shells."""
    return secrets.token_hex(24)


def write_json(path: Path, content: Any) -> None:
    """Replace the file at once: a reader or a crash sees the old or the new, never a half."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return None if there is no such file; refuse one that is not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunnerError(f"{path} is damaged: restore it, or use another directory") from error
    if not isinstance(content, dict):
        raise RunnerError(f"{path} is damaged: restore it, or use another directory")
    return content
