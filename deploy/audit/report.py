"""The result of an audit, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.audit.audit_pass import AuditPass

INVARIANTS: Final = {
    "I1": "the ledger adds up to the balances",
    "I2": "every balance is the sum of its entries, which have no gap",
    "I3": "charged = balances + spent; what was spent and captured is what orders paid",
    "I4": "stocked = free + reserved + sold, line by line",
    "I5": "issued within quantity, one per user, each redeemed coupon in one live order",
    "I6": "every order reached its end by legal transitions and is paid to the unit",
    "I7": "each capture belongs to one payment and one order of its amount, and vice versa",
    "I8": "each stored answer has exactly its effect, each cancelled request has none",
}
LISTED_MAX: Final = 10
"""How many differences of one invariant the text lists."""


@dataclass(frozen=True, slots=True)
class Line:
    """The result of one invariant."""

    invariant: str
    promise: str
    figure: str
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
    in_flight: tuple[str, ...]
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
                "; ".join(found.figures.get(invariant, ())) or "nothing yet",
                tuple(one.text for key, one in found.differences.items() if key[0] == invariant),
                found.more[invariant],
            )
            for invariant, promise in INVARIANTS.items()
        )
        return cls(tuple(lines), tuple(found.in_flight.values()), passes)


def as_text(report: Report) -> str:
    """The report for a reader: a line for each invariant, with its differences below it."""
    return "".join(f"{line}\n" for line in _text_lines(report))


def as_json(report: Report) -> str:
    """The report for a program, with every difference that was kept."""
    lines = [dataclasses.asdict(line) | {"holds": line.holds} for line in report.lines]
    document = {
        "holds": report.holds,
        "looks": report.passes,
        "invariants": lines,
        "in_flight": list(report.in_flight),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _text_lines(report: Report) -> Iterator[str]:
    for line in report.lines:
        yield _headline(line)
        yield from _listed(line.differences, line.more)
    if report.in_flight:
        yield f"in flight, explained by what is under way: {len(report.in_flight):,}"
        yield from _listed(report.in_flight)
    broken = [line.invariant for line in report.lines if not line.holds]
    yield f"The books do NOT balance: {', '.join(broken)}." if broken else "The books balance."


def _headline(line: Line) -> str:
    if line.holds:
        return f"{line.invariant}  ok      {line.figure}: {line.promise}"
    count = len(line.differences) + line.more
    return f"{line.invariant}  BREACH  {line.figure}: {count:,} differ from: {line.promise}"


def _listed(differences: Sequence[str], more: int = 0) -> Iterator[str]:
    for difference in differences[:LISTED_MAX]:
        yield f"      - {difference}"
    if (left := max(len(differences) - LISTED_MAX, 0) + more) > 0:
        yield f"      and {left:,} more"
