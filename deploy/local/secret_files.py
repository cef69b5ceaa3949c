"""Small files that only their owner may read, replaced as a whole."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from deploy.local.errors import RunnerError


def new_password() -> str:
    """A password that needs no quoting in SQL, URLs or shells."""
    return secrets.token_hex(24)


def write_secret(path: Path, text: str) -> None:
    """Replace the file in one step: a reader, or a crash, meets the old or the new text."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def kept_password(path: Path) -> str:
    """The password in the file, which is created the first time."""
    if not path.exists():
        write_secret(path, f"{new_password()}\n")
    return path.read_text().strip()


def write_json(path: Path, content: Any) -> None:
    """Replace the file by a JSON document."""
    write_secret(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file; None if there is no file. Raises RunnerError otherwise."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RunnerError(f"{path} is damaged: restore it, or use another directory")
    return content
