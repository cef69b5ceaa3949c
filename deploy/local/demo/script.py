"""Who does what in the sale. The same seed gives the same script.

Every customer charges a balance, races for a coupon, makes one visit to the limited print (with
the coupon, if there is one) and two visits dealt from VISITS.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CURRENCY: Final = "KRW"
CHARGE_MINOR: Final = 250_000
"""Covers the dearest three orders: nobody is short of money by accident."""
COUPON_MINOR: Final = 2_000
AT_THE_TILL_MINOR: Final = 9_900
TIMES: Final = 5
"""How often a duplicated call is sent, all at once."""
DEALT_PER_USER: Final = 2
USERS_MIN, USERS_MAX = 8, 5_000
ORDER_EXPIRY_S: Final = 15
PLENTY: Final = 1_000_000

# What is on sale, with its price.
PRINT, MUG, SHIRT, STICKER = "Limited print", "Mug", "Shirt", "Sticker"
PRICES_MINOR: Final = {PRINT: 30_000, MUG: 12_000, SHIRT: 25_000, STICKER: 1_500}


class Share(enum.Enum):
    """How much of an order its buyer wants to pay by balance."""

    NONE = "none"
    HALF = "half"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Pay:
    """How an order is paid: coupon, balance and card in any mix."""

    balance: Share = Share.NONE
    card: str | None = None
    """The payment key's prefix, by which the gateway simulator decides what happens."""
    coupon: bool = False


class Twins(enum.Enum):
    """Whether a visit's calls are sent five times at once."""

    NO = "once"
    SAME_ID = "five times, one request_id"
    OWN_IDS = "five times, five request_ids"


class Then(enum.Enum):
    """What a customer does about the order after paying, or instead of it."""

    LEAVE = "leave it"
    CANCEL = "cancel it"
    PAY_BY_BALANCE = "pay it by balance if it was declined"
    CANCEL_MEANWHILE = "cancel it while it is being paid"


@dataclass(frozen=True, slots=True)
class Visit:
    """One order: how it is paid (None: not at all), how often its calls are sent, what then."""

    pay: Pay | None
    twins: Twins = Twins.NO
    then: Then = Then.LEAVE
    wants: str = MUG


GOOD, DECLINED, ERROR = "good_", "decline_", "error_"
CHARGED_ERROR, CHARGED_TIMEOUT, SLOW = "error_after_charge_", "timeout_after_charge_", "slow_"
NEVER_CHARGED: Final = (DECLINED, ERROR)

# First visits: every mix of coupon, balance and card. Who has a coupon takes a turn in these …
WITH_COUPON: Final = (
    Visit(Pay(Share.ALL, coupon=True), wants=PRINT),
    Visit(Pay(card=GOOD, coupon=True), wants=PRINT),
    Visit(Pay(Share.HALF, GOOD, coupon=True), wants=PRINT),
    Visit(Pay(coupon=True), wants=STICKER),  # The coupon covers it: nothing is left to pay.
)
# … who came too late for a coupon, in these.
WITHOUT_COUPON: Final = (
    Visit(Pay(Share.ALL), wants=PRINT),
    Visit(Pay(card=GOOD), wants=PRINT),
    Visit(Pay(Share.HALF, GOOD), wants=PRINT),
)
# All further visits are dealt from these.
VISITS: Final = (
    Visit(Pay(Share.ALL)),
    Visit(Pay(Share.HALF, GOOD)),
    Visit(Pay(Share.HALF, DECLINED), then=Then.PAY_BY_BALANCE),
    Visit(Pay(Share.HALF, DECLINED), then=Then.CANCEL),
    Visit(Pay(Share.HALF, ERROR), then=Then.PAY_BY_BALANCE),
    Visit(Pay(Share.HALF, CHARGED_ERROR)),
    Visit(Pay(Share.HALF, CHARGED_TIMEOUT)),
    Visit(Pay(Share.HALF, SLOW)),
    Visit(Pay(Share.HALF, GOOD), twins=Twins.SAME_ID),
    Visit(Pay(Share.HALF, GOOD), twins=Twins.OWN_IDS),
    Visit(Pay(Share.HALF, GOOD), then=Then.CANCEL),
    Visit(Pay(Share.HALF, GOOD), then=Then.CANCEL_MEANWHILE),
    Visit(None, then=Then.CANCEL),
    Visit(None),  # Forgotten: it expires.
)


@dataclass(frozen=True, slots=True)
class Part:
    """One customer's part in the sale."""

    name: str
    number: int
    visits: Sequence[Visit]
    hasty: bool
    """Sends the charge and the wish for a coupon five times at once."""
    at_the_till: bool
    """Pays one more amount straight at the payment service, five request_ids on one key."""


@dataclass(frozen=True, slots=True)
class Script:
    """The whole sale."""

    seed: int
    parts: Sequence[Part]

    @property
    def coupons(self) -> int:
        """Fewer than there are customers."""
        return len(self.parts) // 2

    def stock(self, product: str) -> int:
        """Fewer prints than are wanted, and enough of everything else."""
        return max(1, len(self.parts) // 2) if product == PRINT else PLENTY

    @property
    def visits(self) -> int:
        return len(self.parts) * (1 + DEALT_PER_USER)


def script(users: int, seed: int) -> Script:
    """The sale of that many customers."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    wanted = users * DEALT_PER_USER
    cards = [VISITS[at % len(VISITS)] for at in range(wanted)]
    chance.shuffle(cards)
    parts = [
        Part(
            name=f"user-{number:04}",
            number=number,
            visits=cards[number * DEALT_PER_USER : (number + 1) * DEALT_PER_USER],
            hasty=number % 6 == 0,
            at_the_till=number % 6 == 3,
        )
        for number in range(users)
    ]
    return Script(seed, parts)


def cart(visit: Visit, number: int) -> dict[str, int]:
    """What goes into the order: two products, in the opposite order for every second customer."""
    if visit.wants == STICKER:
        return {STICKER: 1}
    lines = [(visit.wants, 1), (SHIRT, 1 + number % 2)]
    return dict(lines if number % 2 else reversed(lines))
