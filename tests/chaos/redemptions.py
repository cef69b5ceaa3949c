"""Coupons that are redeemed and restored without an order: one live redemption of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from common.errors import Refusal
from tests.chaos.history import History
from tests.support.coupons import issue, redeem, restore

if TYPE_CHECKING:
    from tests.chaos.load import Traffic
    from tests.faults.load import Customers

RIVALS_MAX: Final = 4
"""Redemptions of one coupon at once."""
ROWS: Final = """
SELECT user_id, request_id, restore_time IS NULL AS live FROM redemptions
 WHERE order_id LIKE 'direct-%'
"""


async def redeem_coupons(traffic: Traffic, crowd: Customers) -> None:
    """Rivals for the coupon of a new user; one of them is restored, or was before it came."""
    while not traffic.stopping:
        user_id, issued = f"redeemer-{next(traffic.numbers)}", None
        with suppress(Refusal):
            issued = await traffic.repeat(
                crowd.coupon.IssueCoupon, issue(crowd.campaign_id, user_id)
            )
        if issued is not None:
            await _redeem(traffic, crowd, user_id, issued.coupon.coupon_id)


async def _redeem(traffic: Traffic, crowd: Customers, user_id: str, coupon_id: str) -> None:
    redeeming, restoring = crowd.coupon.RedeemCoupon, crowd.coupon.RestoreCoupon
    rivals = [
        redeem(coupon_id, user_id, f"r{number}", order_id=f"direct-{user_id}-{number}")
        for number in range(traffic.random.randint(1, RIVALS_MAX))
    ]
    restored = traffic.random.choice(rivals)
    traffic.history.intent(redeeming, restored).prevented = True
    order: list[list[tuple[Any, Any]]] = [
        [(redeeming, rival) for rival in rivals],
        [(restoring, restore(coupon_id, user_id, restored.request_id, "x"))],
    ]
    if traffic.random.random() < 0.2:
        order.reverse()
    again = redeem(coupon_id, user_id, "again", order_id=f"direct-{user_id}-again")
    for together in (*order, [(redeeming, again)]):
        await asyncio.gather(*(traffic.attempt(*each) for each in together))


Live = Mapping[tuple[str, str], bool]
"""Whether each redemption is live, by user and request_id."""


def wrong_redemptions(history: History, live: Live) -> Iterator[str]:
    """Redemptions and restorations of direct calls that the books contradict."""
    for key, intent in history.intents.items():
        if not intent.answered:
            continue
        is_live = live.get((key.scope, key.request_id), False)
        if key.method == "RedeemCoupon" and not intent.prevented and not is_live:
            yield f"RedeemCoupon {key.scope} {key.request_id}: OK, and it is not live"
        elif key.method == "RestoreCoupon" and live.get(
            (key.scope, intent.request.redeem_request_id), False
        ):
            yield f"RestoreCoupon {key.scope} {key.request_id}: OK, and its redemption is live"
    users = Counter(user_id for (user_id, _), is_live in live.items() if is_live)
    for user_id, count in users.items():
        if count > 1:
            yield f"the coupon of {user_id} has {count} live redemptions"
