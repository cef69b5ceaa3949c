"""What one pass over the books finds: figures, differences, and differences that are explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

KEPT_MAX: Final = 1_000
"""How many differences of one check are kept; the others are only counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs from what it should be."""

    text: str
    certain: bool
    """Found within one snapshot: another pass would find it again."""


@dataclass(slots=True)
class AuditPass:
    """Everything that one pass finds."""

    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    """By invariant, and by check and row: the same keys in every pass."""
    more: Counter[str] = field(default_factory=Counter)
    """By invariant, the differences that were only counted."""
    in_flight: dict[str, str] = field(default_factory=dict)
    """By key, differences that a running saga or an undecided payment explains."""
    figures: dict[str, list[str]] = field(default_factory=dict)
    _kept: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add_difference(
        self, invariants: Iterable[str], check: str, row: str, text: str, *, certain: bool = False
    ) -> None:
        """Record a difference under each invariant that it breaks."""
        for invariant in invariants:
            key = (invariant, f"{check}: {row}")
            if self._kept[invariant, check] >= KEPT_MAX:
                self.more[invariant] += 1
            elif key not in self.differences:
                self._kept[invariant, check] += 1
                self.differences[key] = Difference(text, certain)

    def add_in_flight(self, check: str, row: str, text: str) -> None:
        """Record a difference that is explained."""
        self.in_flight[f"{check}: {row}"] = text

    def add_figure(self, invariant: str, text: str) -> None:
        """Record a count or a sum."""
        self.figures.setdefault(invariant, []).append(text)

    @property
    def unsettled(self) -> bool:
        """Whether another pass may find less."""
        return any(not difference.certain for difference in self.differences.values())

    def keep_repeated(self, before: AuditPass) -> AuditPass:
        """Drop the differences that the pass before did not find.

        The snapshots of the services are taken one after another, so under load every pass finds
        some differences that are only due to that. A difference that stays is real.
        """
        self.differences = {
            key: difference
            for key, difference in self.differences.items()
            if key in before.differences
        }
        return self
