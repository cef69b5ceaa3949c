"""Where a setting is given: in the environment, or in a file of the secrets directory.

A setting can be given for one service (``TALLY_BALANCE_POOL_SIZE``) or for all of them at once
(``TALLY_POOL_SIZE``).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

PREFIX = "TALLY_"
SECRETS_DIR = "TALLY_SECRETS_DIR"
SECRET_BYTES_MAX = 64 * 1024

# How alike a name must be to a setting's to be taken for a misspelling of it. Lower, and settings
# of other services would be suspected, which an environment may hold for all of them.
_ALIKE = 0.85


class SettingsError(Exception):
    """A setting is missing or malformed. Its text is one line, fit to be shown to the operator."""


def prefixes(service: str) -> tuple[str, ...]:
    """What a service's variables begin with; the first wins."""
    return (f"{PREFIX}{service.upper()}_", PREFIX) if service else (PREFIX,)


def secrets_dir() -> Path | None:
    """The secrets directory, if there is one and all of ours in it can be read.

    Raises SettingsError, naming the directory or the file.
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
        reason = _reason_against(file)
        if reason:
            raise SettingsError(f"{file}: {reason}")
    return directory


def _secret_files(directory: Path) -> list[Path]:
    return [file for file in directory.iterdir() if file.name.upper().startswith(PREFIX)]


def _reason_against(file: Path) -> str:
    """Why a secret cannot be read: told before a library tells it in many lines, or in none."""
    try:
        if not file.is_file():
            return "is not a file"
        if file.stat().st_size > SECRET_BYTES_MAX:
            return f"is larger than {SECRET_BYTES_MAX} bytes"
        file.read_bytes().decode()
    except UnicodeDecodeError:
        return "is not text in UTF-8"
    except (OSError, RuntimeError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or 'a loop of links'}"
    return ""


def source_of(service: str, field: str) -> str:
    """The variable or file that a setting came from; if it came from none, the one to set."""
    directory = secrets_dir()
    given = {name.upper() for name in os.environ}
    names = [f"{prefix}{field.upper()}" for prefix in prefixes(service)]
    for name in names:
        if name in given:
            return name
        if directory is not None:
            for file in _secret_files(directory):
                if file.name.upper() == name:
                    return str(file)
    return names[0]


def misspelt(service: str, fields: Collection[str]) -> list[str]:
    """What is given and is no setting, one line each: the name, and which may have been meant.

    Names that begin as the service's own are all told. Of others only those that are nearly a
    setting's: the rest may be another service's.
    """
    names = {prefix + field.upper() for prefix in prefixes(service) for field in fields}
    names.add(SECRETS_DIR)
    found = []
    for name in sorted(_given() - names):
        own = bool(service) and name.startswith(prefixes(service)[0])
        if not own and _is_of_another_service(name, fields):
            continue
        meant = get_close_matches(name, names, n=1, cutoff=_ALIKE)
        if own or meant:
            hint = f"; did you mean {meant[0]}?" if meant else ""
            found.append(f"{name}: there is no such setting{hint}")
    return found


def _given() -> set[str]:
    directory = secrets_dir()
    files = [] if directory is None else [file.name for file in _secret_files(directory)]
    return {name.upper() for name in [*os.environ, *files] if name.upper().startswith(PREFIX)}


def _is_of_another_service(name: str, fields: Collection[str]) -> bool:
    """``TALLY_COUPON_POOL_SIZE``, read by balance."""
    return any(name.endswith(f"_{field.upper()}") for field in fields)
