"""The expiry of orders: once, with their stock given back, and only of pending ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, open_shop
from tests.support.refusals import refused

EXPIRED = pb.Order.STATE_EXPIRED
ALL_OVERDUE = "UPDATE orders SET expire_time = now()"
Sql = Callable[[str], str]


@pytest.fixture
async def shop(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """Both replicas look for overdue orders all the time."""
    async with open_shop(
        2, database_url=order_database.runtime, redis_url=redis_url, expiry_interval_s=0.02
    ) as opened:
        yield opened


async def until_expired(shop: Shop, order: pb.Order) -> pb.Order:
    """The expired order; the test's own time limit ends the wait."""
    while (now := await shop.get(order)).state != EXPIRED:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return now


async def test_an_overdue_order_expires_once_and_gives_its_stock_back(shop: Shop, sql: Sql) -> None:
    tea = await shop.product(10)
    late = [await shop.order("ann", {tea: 1}) for _ in range(6)]
    early = await shop.order("ann", {tea: 1})
    sql(f"{ALL_OVERDUE} WHERE order_id <> '{early.order_id}'")
    for each in late:
        assert (await until_expired(shop, each)).version == 2
    assert await shop.stock(tea) == (9, 1, 0)
    assert (await shop.get(early)).state == pb.Order.STATE_PENDING
    with refused("ORDER_NOT_CANCELLABLE"):
        await shop.orders.CancelOrder(cancel(late[0], "x1"))


async def test_more_orders_than_one_sweep_takes_all_expire(shop: Shop, sql: Sql) -> None:
    tea = await shop.product(10**6)
    made = await asyncio.gather(*(shop.order(f"u{n}", {tea: 2}) for n in range(300)))
    sql(ALL_OVERDUE)
    for each in made:
        await until_expired(shop, each)
    assert await shop.stock(tea) == (10**6, 0, 0)


async def test_a_paying_order_does_not_expire(shop: Shop, sql: Sql) -> None:
    tea = await shop.product(10)
    paying, pending = [await shop.order("ann", {tea: 1}) for _ in range(2)]
    sql(f"UPDATE orders SET state = 'PAYING', version = 2 WHERE order_id = '{paying.order_id}'")
    sql(ALL_OVERDUE)
    await until_expired(shop, pending)
    assert (await shop.get(paying)).state == pb.Order.STATE_PAYING
    with refused("PAYMENT_IN_PROGRESS") as ended:
        await shop.orders.CancelOrder(cancel(paying, "x1"))
    assert ended.refusal.retry_after_s is not None
