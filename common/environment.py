"""Where settings are given: in environment variables, or in files of the secrets directory.

A setting can be given for one service (``TALLY_BALANCE_POOL_SIZE``) or for all services
(``TALLY_POOL_SIZE``).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

PREFIX: Final = "TALLY_"
SECRETS_DIR: Final = "TALLY_SECRETS_DIR"


class SettingsError(Exception):
    """A setting is missing or malformed. The text is one line for the operator."""


def prefixes(service: str) -> tuple[str, ...]:
    """The prefixes of a service's variables; the first wins."""
    return (f"{PREFIX}{service.upper()}_", PREFIX) if service else (PREFIX,)


def secrets_dir() -> Path | None:
    """The secrets directory, or None if none is set.

    Raises SettingsError, with the directory's or the file's name, if a secret cannot be read.
    """
    name = os.environ.get(SECRETS_DIR, "")
    if not name:
        return None
    directory = Path(name)
    if not directory.is_dir():
        raise SettingsError(f"{SECRETS_DIR}: is not a directory")
    try:
        files = _secret_files(directory)
    except OSError as error:
        raise SettingsError(f"{SECRETS_DIR}: cannot be read: {error.strerror}") from None
    for file in files:
        try:
            if not file.is_file():
                raise SettingsError(f"{file}: is not a file")
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise SettingsError(f"{file}: is not text in UTF-8") from None
        except OSError as error:
            raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    return directory


def source_of(service: str, field: str) -> str:
    """The variable or file that a setting came from; if none, the variable to set."""
    source = _source(service, field)
    return str(source) if source else f"{prefixes(service)[0]}{field.upper()}"


def file_of(service: str, field: str) -> Path | None:
    """The file that a setting came from; None if it came from a variable, or is not set."""
    source = _source(service, field)
    return source if isinstance(source, Path) else None


def _source(service: str, field: str) -> str | Path | None:
    variables = {name.upper() for name in os.environ}
    files = {file.name.upper(): file for file in _secret_files(secrets_dir())}
    for prefix in prefixes(service):
        name = f"{prefix}{field.upper()}"
        if name in variables:
            return name
        if name in files:
            return files[name]
    return None


def unknown_names(service: str, fields: Collection[str]) -> list[str]:
    """Variables and files that begin with the service's own prefix and are no setting."""
    prefix = prefixes(service)[0]
    given = {name.upper() for name in os.environ}
    given |= {file.name.upper() for file in _secret_files(secrets_dir())}
    known = {prefix + field.upper() for field in fields}
    return sorted(name for name in given - known if name.startswith(prefix))


def _secret_files(directory: Path | None) -> list[Path]:
    """The files of the directory that are settings by their names."""
    if directory is None:
        return []
    return [file for file in directory.iterdir() if file.name.upper().startswith(PREFIX)]
