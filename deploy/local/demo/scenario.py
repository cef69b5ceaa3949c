"""Who does what in the sale. The same seed gives the same scenario.

Every customer charges a balance, races for a coupon, makes one visit for the limited print (with
the coupon, if there is one) and two visits from VISITS.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CURRENCY: Final = "KRW"
CHARGE_MINOR: Final = 250_000
"""Enough for the three most expensive orders: no order fails for lack of money."""
COUPON_MINOR: Final = 2_000
DIRECT_MINOR: Final = 9_900
"""The amount of a payment without an order."""
TIMES: Final = 5
"""How many times a duplicated call is sent, all at once."""
VISITS_PER_USER: Final = 2
"""After the first one."""
USERS_MIN, USERS_MAX = 8, 5_000
ORDER_EXPIRY_S: Final = 15
PLENTY: Final = 1_000_000

# What is on sale, with its price.
PRINT, MUG, SHIRT, STICKER = "Limited print", "Mug", "Shirt", "Sticker"
PRICES_MINOR: Final = {PRINT: 30_000, MUG: 12_000, SHIRT: 25_000, STICKER: 1_500}


class Share(enum.Enum):
    """The share of an order that is paid by balance."""

    NONE = "none"
    HALF = "half"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Pay:
    """How an order is paid: coupon, balance and card in any mix."""

    balance: Share = Share.NONE
    card: str | None = None
    """The payment key's prefix, which decides what the gateway simulator does."""
    coupon: bool = False


class Duplicate(enum.Enum):
    """Whether the calls of a visit are sent five times at once."""

    NO = "once"
    SAME_ID = "five times, one request_id"
    OWN_IDS = "five times, five request_ids"


class Then(enum.Enum):
    """What a customer does with the order after the payment, or instead of it."""

    KEEP = "keep it"
    CANCEL = "cancel it"
    PAY_BY_BALANCE = "pay it by balance if the card was declined"
    CANCEL_MEANWHILE = "cancel it while it is being paid"


@dataclass(frozen=True, slots=True)
class Visit:
    """One order: how it is paid (None: not at all), how often its calls are sent, what follows."""

    pay: Pay | None
    duplicate: Duplicate = Duplicate.NO
    then: Then = Then.KEEP
    wants: str = MUG


GOOD, DECLINED, ERROR = "good_", "decline_", "error_"
CHARGED_ERROR, CHARGED_TIMEOUT, SLOW = "error_after_charge_", "timeout_after_charge_", "slow_"
NEVER_CHARGED: Final = (DECLINED, ERROR)
TAKES_SECONDS: Final = (ERROR, CHARGED_ERROR, CHARGED_TIMEOUT, SLOW)
"""Cards that are answered late: the gateway is slow, or it is asked again what it did."""

# First visits: every mix of coupon, balance and card. Customers with a coupon take these in turn,
WITH_COUPON: Final = (
    Visit(Pay(Share.ALL, coupon=True), wants=PRINT),
    Visit(Pay(card=GOOD, coupon=True), wants=PRINT),
    Visit(Pay(Share.HALF, GOOD, coupon=True), wants=PRINT),
    Visit(Pay(coupon=True), wants=STICKER),  # The coupon covers it: nothing is left to pay.
)
# customers without a coupon these.
WITHOUT_COUPON: Final = (
    Visit(Pay(Share.ALL), wants=PRINT),
    Visit(Pay(card=GOOD), wants=PRINT),
    Visit(Pay(Share.HALF, GOOD), wants=PRINT),
)
# All further visits, shuffled.
VISITS: Final = (
    Visit(Pay(Share.ALL)),
    Visit(Pay(Share.HALF, GOOD)),
    Visit(Pay(Share.HALF, DECLINED), then=Then.PAY_BY_BALANCE),
    Visit(Pay(Share.HALF, DECLINED), then=Then.CANCEL),
    Visit(Pay(Share.HALF, ERROR), then=Then.PAY_BY_BALANCE),
    Visit(Pay(Share.HALF, CHARGED_ERROR)),
    Visit(Pay(Share.HALF, CHARGED_TIMEOUT)),
    Visit(Pay(Share.HALF, SLOW)),
    Visit(Pay(Share.HALF, GOOD), duplicate=Duplicate.SAME_ID),
    Visit(Pay(Share.HALF, GOOD), duplicate=Duplicate.OWN_IDS),
    Visit(Pay(Share.HALF, GOOD), then=Then.CANCEL),
    Visit(Pay(Share.HALF, GOOD), then=Then.CANCEL_MEANWHILE),
    Visit(None, then=Then.CANCEL),
    Visit(None),  # Not paid: it expires.
)


@dataclass(frozen=True, slots=True)
class CustomerPlan:
    """What one customer does."""

    name: str
    number: int
    visits: Sequence[Visit]
    sends_duplicates: bool
    """Sends the charge and the request for a coupon five times at once."""
    pays_directly: bool
    """Also makes a payment without an order: five request_ids with one payment key."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The whole sale."""

    seed: int
    customers: Sequence[CustomerPlan]

    @property
    def coupons(self) -> int:
        """Fewer than there are customers."""
        return len(self.customers) // 2

    def stock(self, product: str) -> int:
        """Fewer prints than are wanted, and enough of everything else."""
        return max(1, len(self.customers) // 2) if product == PRINT else PLENTY

    @property
    def visits(self) -> int:
        return len(self.customers) * (1 + VISITS_PER_USER)


def make_scenario(users: int, seed: int) -> Scenario:
    """The sale with that many customers."""
    wanted = users * VISITS_PER_USER
    visits = [VISITS[number % len(VISITS)] for number in range(wanted)]
    random.Random(seed).shuffle(visits)  # noqa: S311 - not for secrets
    customers = [
        CustomerPlan(
            name=f"user-{number:04}",
            number=number,
            visits=visits[number * VISITS_PER_USER : (number + 1) * VISITS_PER_USER],
            sends_duplicates=number % 6 == 0,
            pays_directly=number % 6 == 3,
        )
        for number in range(users)
    ]
    return Scenario(seed, customers)


def cart(visit: Visit, number: int) -> dict[str, int]:
    """The order's lines: two products, in the opposite order for every second customer."""
    if visit.wants == STICKER:
        return {STICKER: 1}
    lines = [(visit.wants, 1), (SHIRT, 1 + number % 2)]
    return dict(lines if number % 2 else reversed(lines))
