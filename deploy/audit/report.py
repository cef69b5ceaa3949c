"""The result of an audit, and its JSON document (docs/guides/audit.md has the shape)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from deploy.audit.audit_pass import AuditPass, Note
from deploy.audit.invariants import INVARIANTS, WITHOUT_GATEWAY
from deploy.audit.touched import Since

NOTES: Final = {
    Note.NEEDS_ATTENTION: "need a person's attention",
    Note.STANDING: "standing by a person's decision (ResolveSaga)",
    Note.REFUNDED_OUTSIDE: "refunded outside Tally",
    Note.FOREIGN: "foreign (under a request_id of sagas, and no saga's; identity was off)",
    Note.GIVING_BACK: "being given back",
    Note.UNDER_WAY: "under way",
}
"""The headings of what is listed without being a difference."""


@dataclass(frozen=True, slots=True)
class Line:
    """The result of one invariant."""

    invariant: str
    finding: str
    """What holds or does not, in words."""
    figures: tuple[str, ...]
    differences: tuple[str, ...]
    more: int
    """Differences beyond these, which were only counted."""

    @property
    def holds(self) -> bool:
        return not self.differences and not self.more

    @property
    def count(self) -> int:
        """The number of differences."""
        return len(self.differences) + self.more


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an audit."""

    lines: tuple[Line, ...]
    notes: dict[Note, tuple[str, ...]]
    more_notes: dict[Note, int]
    """Notes beyond these, which were only counted."""
    passes: int
    keys: frozenset[str] = frozenset()
    """What identifies the differences that were kept: the same in the next audit."""
    standing: Mapping[str, str] = field(default_factory=dict)
    standing_minor: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """What was not checked, and why."""
    times: Mapping[str, datetime] = field(default_factory=dict)
    """By service, when its first snapshot was taken at the latest."""
    since: Since | None = None
    """None: the whole books were checked; else what was touched since then."""
    databases: Mapping[str, str] = field(default_factory=dict)
    """By service, the place of the database that was read, without user and password."""

    @property
    def holds(self) -> bool:
        """Whether every invariant holds."""
        return all(line.holds for line in self.lines)

    @property
    def breaches(self) -> int:
        """The number of differences; one that breaks two invariants counts twice."""
        return sum(line.count for line in self.lines)

    @property
    def broken(self) -> list[str]:
        """The invariants that do not hold."""
        return [line.invariant for line in self.lines if not line.holds]

    def noted(self, note: Note) -> int:
        """How many notes of a kind there are."""
        return len(self.notes.get(note, ())) + self.more_notes.get(note, 0)

    @classmethod
    def of(
        cls,
        found: AuditPass,
        passes: int,
        *,
        times: Mapping[str, datetime] | None = None,
        since: Since | None = None,
        databases: Mapping[str, str] | None = None,
    ) -> Report:
        notes = {note: tuple(found.notes.get(note, ())) for note in NOTES}
        return cls(
            lines=tuple(_line(found, invariant) for invariant in INVARIANTS),
            notes=notes,
            more_notes=dict(found.more_notes),
            passes=passes,
            keys=frozenset(f"{invariant} {row}" for invariant, row in found.differences),
            standing=dict(found.standing),
            standing_minor=dict(found.standing_minor),
            left_out=tuple(found.left_out),
            times=dict(times or {}),
            since=since,
            databases=dict(databases or {}),
        )


def _line(found: AuditPass, invariant: str) -> Line:
    differences = tuple(
        one.text for (broken, _), one in found.differences.items() if broken == invariant
    )
    words, more = INVARIANTS[invariant], found.more[invariant]
    if differences or more:
        finding = words.broken
    elif found.gateway_left_out:
        finding = WITHOUT_GATEWAY.get(invariant, words.holds)
    else:
        finding = words.holds
    return Line(invariant, finding, tuple(found.figures.get(invariant, ())), differences, more)


def as_json(report: Report) -> str:
    """The report for a program, with every difference and note that was kept."""
    lines = [dataclasses.asdict(line) | {"holds": line.holds} for line in report.lines]
    since = {service: time.isoformat() for service, time in (report.since or {}).items()}
    document = {
        "holds": report.holds,
        "scope": "recent" if report.since else "full",
        "since": since or None,
        "databases": dict(report.databases),
        "snapshots": {service: time.isoformat() for service, time in report.times.items()},
        "looks": report.passes,
        "invariants": lines,
        "not_checked": list(report.left_out),
        "notes": {note.value: list(texts) for note, texts in report.notes.items()},
        "more_notes": {note.value: report.more_notes.get(note, 0) for note in report.notes},
        "standing_minor": dict(report.standing_minor),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
