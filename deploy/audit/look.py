"""What one look at the books shows: figures, differences, and differences that will pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

INVARIANTS: Final = {
    "I1": "the ledger adds up to the balances",
    "I2": "every balance is the sum of its entries, without a gap",
    "I3": "charged = balances + spent; what was spent and captured is what orders paid",
    "I4": "stocked = free + reserved + sold, line by line",
    "I5": "issued within quantity, one per user, each redeemed coupon in one live order",
    "I6": "every order came to its end by legal moves and is paid to the unit",
    "I7": "each capture belongs to one payment and one order of its amount, and back",
    "I8": "each answer has exactly its effect, each cancelled request has none",
}
"""What must hold, in the words of a report."""

KEPT_MAX: Final = 1_000
"""As many differences of one check are kept by name; the others are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs from what it should be."""

    invariant: str
    key: str
    """The same at every look: the row, and what is looked for."""
    told: str
    certain: bool
    """Seen inside one snapshot: looking again would only show it again."""


@dataclass(slots=True)
class Look:
    """Everything seen at one time."""

    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    more: Counter[str] = field(default_factory=Counter)
    """By invariant, the differences that were only counted."""
    in_flight: dict[str, str] = field(default_factory=dict)
    """By key, differences explained by something that is still under way."""
    figures: dict[str, list[str]] = field(default_factory=dict)
    _kept: Counter[str] = field(default_factory=Counter)

    def differ(
        self, invariants: Iterable[str], check: str, row: str, told: str, *, certain: bool = False
    ) -> None:
        """Note a difference, under each invariant that it breaks."""
        for invariant in invariants:
            key = f"{check}: {row}"
            if self._kept[f"{invariant} {check}"] >= KEPT_MAX:
                self.more[invariant] += 1
            elif (invariant, key) not in self.differences:
                self._kept[f"{invariant} {check}"] += 1
                self.differences[invariant, key] = Difference(invariant, key, told, certain)

    def explained(self, check: str, row: str, told: str) -> None:
        """Note a difference that something under way explains."""
        self.in_flight[f"{check}: {row}"] = told

    def figure(self, invariant: str, told: str) -> None:
        """Say what was counted or summed."""
        self.figures.setdefault(invariant, []).append(told)

    @property
    def unsettled(self) -> bool:
        """Whether looking again may show less."""
        return any(not difference.certain for difference in self.differences.values())

    def since(self, before: Look) -> Look:
        """This look, without the differences that were not there before.

        Each service is seen at its own moment, so under load every look shows differences that
        are only that. One that stays is one.
        """
        self.differences = {
            key: difference
            for key, difference in self.differences.items()
            if key in before.differences
        }
        return self


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be said of one invariant."""

    invariant: str
    promise: str
    figure: str
    differences: tuple[str, ...]
    more: int
    """Differences beyond those named."""

    @property
    def holds(self) -> bool:
        return not self.differences and not self.more


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of an audit."""

    lines: tuple[Line, ...]
    in_flight: tuple[str, ...]
    looks: int

    @property
    def holds(self) -> bool:
        """Whether every invariant does."""
        return all(line.holds for line in self.lines)

    @classmethod
    def of(cls, look: Look, looks: int) -> Report:
        return cls(
            tuple(
                Line(
                    invariant,
                    promise,
                    "; ".join(look.figures.get(invariant, ())) or "nothing yet",
                    tuple(d.told for d in look.differences.values() if d.invariant == invariant),
                    look.more[invariant],
                )
                for invariant, promise in INVARIANTS.items()
            ),
            tuple(look.in_flight.values()),
            looks,
        )
