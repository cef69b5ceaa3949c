"""What the customers' calls returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tally_client import TallyError

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
"""The refusals of a flash sale. Any other is an error."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """One call's result: the id of what it created or changed, or the reason of a refusal."""

    id: str = ""
    replayed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The results of one intent that was sent several times at once."""

    what: str
    own_ids: bool
    """Each call had its own request_id: one may succeed, the others are refused."""
    results: Sequence[CallResult]

    @property
    def effects(self) -> int:
        """How many of the calls had an effect, by their results."""
        ids = [result.id for result in self.results if result.id]
        return len(ids) if self.own_ids else len(set(ids))

    @property
    def collapsed(self) -> int:
        """How many of the calls had no effect of their own."""
        return len(self.results) - self.effects

    @property
    def right(self) -> bool:
        """One effect, in every result. None only if no call reached the gateway."""
        reasons = {result.reason for result in self.results if result.reason}
        if self.own_ids:
            unreached = "GATEWAY_UNAVAILABLE" in reasons
            return self.effects == 1 or (self.effects == 0 and unreached)
        # At most one: the result that is no replay may have been lost with the killed replica.
        first = sum(1 for result in self.results if result.id and not result.replayed)
        return self.effects + len(reasons) == 1 and first <= 1


@dataclass(slots=True)
class SaleResults:
    """The results of all customers."""

    counts: Counter[str] = field(default_factory=Counter)
    """By reason, or by the call that succeeded."""
    charged_minor: Counter[str] = field(default_factory=Counter)
    """By user."""
    coupons: dict[str, str] = field(default_factory=dict)
    """The coupon of each user who got one."""
    orders: dict[str, str] = field(default_factory=dict)
    """The user of each order."""
    cards: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Attempts to pay by card, by the key's prefix and the result."""
    direct_keys: dict[str, str] = field(default_factory=dict)
    """The payment key of each user who made a direct payment."""
    duplicates: list[Duplicates] = field(default_factory=list)
    unexpected: Counter[str] = field(default_factory=Counter)

    def add_refusal(self, call: str, refusal: TallyError) -> CallResult:
        reason = refusal.reason or refusal.code.name
        if reason not in EXPECTED:
            self.unexpected[f"{call}: {reason} ({refusal.message})"] += 1
        return CallResult(reason=reason)
