"""Many users who buy one product at once, each paying by coupon, balance and gateway."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tally.order.v1 import order_pb2 as pb
from tests.support.balances import charge
from tests.support.coupons import campaign, issue
from tests.support.orders import fresh, pay
from tests.support.refusals import Results, outcome
from tests.support.stack import Stack
from tests.support.time_limits import LONG_S

PRICE: Final = 10_000
DISCOUNT: Final = 1_000
BALANCE: Final = 4_000


async def sale(stack: Stack, orders: int) -> Results:
    """The results of ``orders`` payments of as many users, and of what they do before."""
    product_id = await stack.shop.product(orders, price=PRICE)
    made = await stack.coupon.CreateCampaign(campaign(fresh("campaign"), quantity=orders))

    async def buy() -> Any:
        user_id = fresh("user")
        await stack.balance.ChargeBalance(charge(user_id, BALANCE, fresh("c")), timeout=LONG_S)
        wanted = issue(made.campaign.campaign_id, user_id, fresh("i"))
        coupon = (await stack.coupon.IssueCoupon(wanted, timeout=LONG_S)).coupon
        order = await stack.shop.order(user_id, {product_id: 1})
        await stack.shop.get(order)
        coupon_id, key = coupon.coupon_id, fresh("key")
        return await stack.pay(pay(order, coupon_id=coupon_id, balance=BALANCE, payment_key=key))

    return Results.of(await asyncio.gather(*(outcome(buy()) for _ in range(orders))))


async def assert_all_sold(stack: Stack, orders: int) -> None:
    """Every payment of a sale succeeds."""
    responses, refusals = await sale(stack, orders)
    assert refusals == {}
    assert [each.order.state for each in responses] == [pb.Order.STATE_PAID] * orders
