"""The result of an audit, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.audit.audit_pass import AuditPass, Note

INVARIANTS: Final = {
    "I1": "the ledger adds up to the balances",
    "I2": "every balance is the sum of its entries, which have no gap",
    "I3": "charged = balances + spent; captured - refunded = paid + being given back + standing",
    "I4": "stocked = free + reserved + sold, line by line, and is the sum of its journal",
    "I5": "issued within quantity, one per user, each redemption in one live order or standing",
    "I6": "every order moves by legal transitions and is paid to the unit; nothing is overdue",
    "I7": "each capture pays one order its amount, is given back, being given back, or standing",
    "I8": "each stored answer has exactly its effect, each cancelled request has none",
}
LISTED_MAX: Final = 10
"""How many differences of one invariant, and notes of one kind, the text lists."""
NOTES: Final = {
    Note.NEEDS_ATTENTION: "need a person's attention",
    Note.STANDING: "standing by a person's decision (ResolveSaga)",
    Note.REFUNDED_OUTSIDE: "refunded outside Tally",
    Note.GIVING_BACK: "being given back",
    Note.UNDER_WAY: "under way",
}
"""The headings of what is listed without being a difference."""


@dataclass(frozen=True, slots=True)
class Line:
    """The result of one invariant."""

    invariant: str
    promise: str
    figures: tuple[str, ...]
    differences: tuple[str, ...]
    more: int
    """Differences beyond these, which were only counted."""

    @property
    def holds(self) -> bool:
        return not self.differences and not self.more


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an audit."""

    lines: tuple[Line, ...]
    notes: dict[Note, tuple[str, ...]]
    more_notes: dict[Note, int]
    """Notes beyond these, which were only counted."""
    passes: int

    @property
    def holds(self) -> bool:
        """Whether every invariant holds."""
        return all(line.holds for line in self.lines)

    @classmethod
    def of(cls, found: AuditPass, passes: int) -> Report:
        lines = (
            Line(
                invariant,
                promise,
                tuple(found.figures.get(invariant, ())),
                tuple(one.text for key, one in found.differences.items() if key[0] == invariant),
                found.more[invariant],
            )
            for invariant, promise in INVARIANTS.items()
        )
        notes = {note: tuple(found.notes.get(note, ())) for note in NOTES}
        return cls(tuple(lines), notes, dict(found.more_notes), passes)


def as_text(report: Report) -> str:
    """The report for a reader: each invariant with its figures and the differences below it, what
    is listed without being a difference, and the verdict in the last line."""
    return "".join(f"{line}\n" for line in _text_lines(report))


def as_json(report: Report) -> str:
    """The report for a program, with every difference that was kept."""
    lines = [dataclasses.asdict(line) | {"holds": line.holds} for line in report.lines]
    document = {
        "holds": report.holds,
        "looks": report.passes,
        "invariants": lines,
        "notes": {note.value: list(texts) for note, texts in report.notes.items()},
        "more_notes": {note.value: report.more_notes.get(note, 0) for note in report.notes},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _text_lines(report: Report) -> Iterator[str]:
    for line in report.lines:
        yield _headline(line)
        yield from (f"            {figure}" for figure in line.figures)
        yield from _listed(line.differences, line.more)
    for note, texts in report.notes.items():
        more = report.more_notes.get(note, 0)
        if texts:
            yield f"{len(texts) + more:,} {NOTES[note]}:"
            yield from _listed(texts, more)
    broken = [line.invariant for line in report.lines if not line.holds]
    yield f"The books do NOT balance: {', '.join(broken)}." if broken else "The books balance."


def _headline(line: Line) -> str:
    if line.holds:
        return f"{line.invariant}  ok      {line.promise}"
    count = len(line.differences) + line.more
    return f"{line.invariant}  BREACH  {count:,} differ from: {line.promise}"


def _listed(differences: Sequence[str], more: int = 0) -> Iterator[str]:
    for difference in differences[:LISTED_MAX]:
        yield f"      - {difference}"
    if (left := max(len(differences) - LISTED_MAX, 0) + more) > 0:
        yield f"      and {left:,} more"
