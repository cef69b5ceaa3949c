"""What the customers saw, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tally_client import TallyError

# What a flash sale says no with. Any other refusal is one that should not have been.
EXPECTED: Final = frozenset(
    {
        "COUPON_SOLD_OUT",
        "OUT_OF_STOCK",
        "PAYMENT_DECLINED",
        "PAYMENT_KEY_USED",
        "ORDER_NOT_PAYABLE",
        "ORDER_NOT_CANCELLABLE",
        "GATEWAY_UNAVAILABLE",
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's answer: the id of what it made or changed, or the reason of a refusal."""

    id: str = ""
    replayed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The answers to one intent that was sent several times at once."""

    what: str
    own_ids: bool
    """Sent under request_ids of their own: then one may succeed and the rest are refused."""
    answers: Sequence[Answer]

    @property
    def effects(self) -> int:
        """How many of the calls had an effect, by what they were answered."""
        if self.own_ids:
            return sum(1 for answer in self.answers if answer.id)
        return len({answer.id for answer in self.answers if answer.id})

    @property
    def collapsed(self) -> int:
        """How many of the calls did nothing."""
        return len(self.answers) - self.effects

    @property
    def right(self) -> bool:
        """One effect, and everybody told so; none only if nobody could reach the gateway."""
        reasons = {answer.reason for answer in self.answers if answer.reason}
        if self.own_ids:
            unreached = "GATEWAY_UNAVAILABLE" in reasons
            return self.effects == 1 or (self.effects == 0 and unreached)
        # The answer that was not a replay may have been lost with the killed replica: at most one.
        first = sum(1 for answer in self.answers if answer.id and not answer.replayed)
        return self.effects + len(reasons) == 1 and first <= 1


@dataclass(slots=True)
class Happened:
    """Everything the customers were told."""

    counts: Counter[str] = field(default_factory=Counter)
    charged_minor: Counter[str] = field(default_factory=Counter)
    """By user."""
    coupons: dict[str, str] = field(default_factory=dict)
    """The coupon of each user who got one."""
    orders: dict[str, str] = field(default_factory=dict)
    """The user of each order."""
    cards: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Attempts to pay by card, by the key's prefix and what came of them."""
    till_keys: dict[str, str] = field(default_factory=dict)
    """The payment key of each user who paid at the till."""
    duplicates: list[Duplicates] = field(default_factory=list)
    surprises: Counter[str] = field(default_factory=Counter)

    def refused(self, doing: str, refusal: TallyError) -> Answer:
        reason = refusal.reason or refusal.code.name
        if reason not in EXPECTED:
            self.surprises[f"{doing}: {reason} ({refusal.message})"] += 1
        return Answer(reason=reason)

    def sent_at_once(self, what: str, answers: Iterable[Answer], *, own_ids: bool) -> None:
        self.duplicates.append(Duplicates(what, own_ids, list(answers)))
