"""The limit of a user's open orders: what counts, who has more, and what replicas exceed it by."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.crowd import RIVALS
from tests.support.orders import Shop, create_order, fresh, open_shop
from tests.support.refusals import Results, outcome, refused

MOST = 3
with_redis_and_without = pytest.mark.parametrize("redis_url", ["redis", "no-redis"], indirect=True)


@pytest.fixture
async def limited(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """A client of two replicas with the limit, in turns."""
    urls = {"database_url": order_database.runtime, "redis_url": redis_url}
    async with open_shop(2, open_orders_max=MOST, **urls) as opened:
        yield opened


async def test_orders_that_are_paid_for_or_ended_do_not_count(limited: Shop) -> None:
    free, tea = await limited.product(100, price=0), await limited.product(100)
    paid = await limited.order("ann", {free: 1})
    await limited.orders.PayOrder(
        pb.PayOrderRequest(order_id=paid.order_id, user_id="ann", request_id=fresh())
    )
    orders = [await limited.order("ann", {tea: 1}) for _ in range(MOST)]
    with refused("OPEN_ORDERS_LIMIT"):
        await limited.order("ann", {tea: 1})
    assert await limited.stock(tea) == (100 - MOST, MOST, 0)
    await limited.orders.CancelOrder(
        pb.CancelOrderRequest(
            order_id=orders[0].order_id, user_id="ann", reason="no", request_id=fresh()
        )
    )
    assert (await limited.order("ann", {tea: 1})).order_id
    assert (await limited.order("bob", {tea: 1})).order_id, "another user's are his own"


async def test_a_replay_is_answered_at_the_limit(limited: Shop) -> None:
    tea = await limited.product(100)
    for number in range(MOST):
        await limited.order("ann", {tea: 1}, f"o{number}")
    again = await limited.orders.CreateOrder(create_order("ann", {tea: 1}, "o0"))
    assert again.replayed
    # A refusal is not stored: the same request may succeed later.
    for _ in range(2):
        with refused("OPEN_ORDERS_LIMIT"):
            await limited.order("ann", {tea: 1}, "o9")


async def rivals(shop: Shop, products: list[str]) -> Counter[str]:
    """The ends of many calls of one user at once."""
    requests = [
        create_order("ann", {products[number % len(products)]: 1}, fresh())
        for number in range(RIVALS)
    ]
    calls = (outcome(shop.orders.CreateOrder(request)) for request in requests)
    results = Results.of(await asyncio.gather(*calls))
    return results.refusals + Counter({"": len(results.responses)})


@with_redis_and_without
async def test_orders_at_once_of_one_product_keep_to_the_limit(limited: Shop) -> None:
    """The product's row is locked before the orders are counted."""
    ends = await rivals(limited, [await limited.product(1_000)])
    assert ends == {"": MOST, "OPEN_ORDERS_LIMIT": RIVALS - MOST}


@with_redis_and_without
async def test_orders_at_once_exceed_the_limit_by_a_batch_of_each_replica_at_most(
    limited: Shop,
) -> None:
    ends = await rivals(limited, [await limited.product(1_000) for _ in range(10)])
    assert MOST <= ends[""] <= 2 * MOST
    assert ends[""] + ends["OPEN_ORDERS_LIMIT"] == RIVALS


async def test_without_the_limit_all_are_created(shop: Shop) -> None:
    """The control, and the default."""
    assert await rivals(shop, [await shop.product(1_000)]) == {"": RIVALS}
