"""What one pass over the books finds: figures, differences, notes, and sums of captures."""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

KEPT_MAX: Final = 1_000
"""How many differences of one check, and how many notes of one kind, are kept; the others are only
counted."""
STANDING_MAX: Final = 100_000
"""How many cases of what stands are told apart. Each is a decision of a person."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs from what it should be."""

    text: str
    certain: bool
    """Found within one snapshot: another pass would find it again."""


class Note(enum.StrEnum):
    """What is listed without being a difference."""

    UNDER_WAY = "under_way"
    """A payment or an attempt to pay that moves."""
    GIVING_BACK = "being_given_back"
    """An effect that is being undone, by work that moves."""
    STANDING = "standing"
    """An effect that stays by a person's decision."""
    REFUNDED_OUTSIDE = "refunded_outside"
    """Money that was given back, and not by Tally."""
    FOREIGN = "foreign"
    """An effect under a request_id of sagas that no saga has, from when identity was off."""
    NEEDS_ATTENTION = "needs_attention"
    """What a person should look at. It explains a difference only while it moves."""


@dataclass(slots=True)
class AuditPass:
    """Everything that one pass finds."""

    times: Mapping[str, datetime] = field(default_factory=dict)
    """By service, when its snapshot was taken at the latest, by the clock of its database."""
    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    """By invariant, and by check and row: the same keys in every pass."""
    more: Counter[str] = field(default_factory=Counter)
    """By invariant, the differences that were only counted."""
    notes: dict[Note, list[str]] = field(default_factory=lambda: defaultdict(list))
    more_notes: Counter[Note] = field(default_factory=Counter)
    """Notes that were only counted."""
    figures: dict[str, list[str]] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    """The cases of what stands: the effect and its saga, and the text."""
    standing_minor: Counter[str] = field(default_factory=Counter)
    """By currency, the money that stands, in minor units."""
    left_out: list[str] = field(default_factory=list)
    """What was not checked, and why."""
    gateway_left_out: bool = False
    """Whether nothing is known of the gateway's side."""
    repeated: bool = False
    """Whether only what the pass before has found as well is left."""
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

    def add_note(self, note: Note, text: str) -> None:
        """Record what is to be listed."""
        if len(self.notes[note]) < KEPT_MAX:
            self.notes[note].append(text)
        else:
            self.more_notes[note] += 1

    def add_standing(self, case: str, text: str) -> None:
        """Record an effect that stays by a person's decision; ``case`` identifies it."""
        self.add_note(Note.STANDING, text)
        if len(self.standing) < STANDING_MAX:
            self.standing[case] = text

    def leave_out(self, text: str) -> None:
        """Record what is not checked, and why."""
        self.left_out.append(text)

    def add_figure(self, invariant: str, text: str) -> None:
        """Record a count or a sum."""
        self.figures.setdefault(invariant, []).append(text)

    @property
    def unsettled(self) -> bool:
        """Whether there are differences of which another pass may find less."""
        return any(not difference.certain for difference in self.differences.values())

    @property
    def needs_another(self) -> bool:
        """Whether another pass may find less: of unsettled differences, each of them; of foreign
        effects, the second one."""
        return self.unsettled or (bool(self.notes[Note.FOREIGN]) and not self.repeated)

    def keep_repeated(self, before: AuditPass) -> AuditPass:
        """Drop the differences and the foreign effects that the pass before did not find.

        The snapshots of the services are taken one after another, so under load every pass finds
        some that are only due to that. One that stays is real.
        """
        self.differences = {
            key: difference
            for key, difference in self.differences.items()
            if key in before.differences
        }
        known = {*before.notes[Note.FOREIGN]}
        self.notes[Note.FOREIGN] = [text for text in self.notes[Note.FOREIGN] if text in known]
        self.repeated = True
        return self
