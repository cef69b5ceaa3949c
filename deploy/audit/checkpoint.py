"""What the audit remembers between two verdicts, in a file of its own.

Without it the next verdict is a full one: nothing is lost but time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.audit.report import Report
from deploy.local.secret_files import write_secret

KEYS_MAX: Final = 1_000

_log = structlog.stdlib.get_logger()


class Verdict(BaseModel):
    """The last verdict of one scope; times are Unix times in seconds."""

    model_config = ConfigDict(extra="ignore")

    start: float
    completion: float
    breaches: int
    keys: list[str] = []
    """What identifies the differences, up to KEYS_MAX of them."""


class Full(Verdict):
    """The last verdict on the whole books."""

    snapshots: dict[str, datetime]
    """By service, by the clock of its database: what was committed before is in the verdict."""
    standing: list[str] = []
    """The cases of what stood."""
    standing_minor: dict[str, int] = {}
    new_standing: int = 0


class Memory(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="ignore")

    full: Full | None = None
    recent: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file. One audit at a time writes it."""

    path: Path

    def read(self) -> Memory:
        """What was remembered; nothing if there is no file, or a damaged one."""
        try:
            return Memory.model_validate_json(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Memory()
        except (ValidationError, UnicodeDecodeError):
            _log.warning("audit_checkpoint_damaged", path=str(self.path))
            return Memory()

    def write(self, memory: Memory) -> None:
        """Replace the file in one step. Raises OSError."""
        write_secret(self.path, memory.model_dump_json(indent=2) + "\n")


def verdict_of(report: Report, start: float, completion: float) -> Verdict:
    """What is remembered of an audit of what was touched."""
    return Verdict(
        start=start,
        completion=completion,
        breaches=report.breaches,
        keys=sorted(report.keys)[:KEYS_MAX],
    )


def full_of(report: Report, start: float, completion: float, new_standing: int) -> Full:
    """What is remembered of an audit of the whole."""
    return Full(
        start=start,
        completion=completion,
        breaches=report.breaches,
        keys=sorted(report.keys)[:KEYS_MAX],
        snapshots=dict(report.times),
        standing=sorted(report.standing),
        standing_minor=dict(report.standing_minor),
        new_standing=new_standing,
    )
