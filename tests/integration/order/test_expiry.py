"""What time does to an order: it expires once, gives its stock back, and no other way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, shop, sql_of
from tests.support.refusals import refused


@pytest.fixture
async def sweeping(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """Two replicas that both look for overdue orders all the time."""
    async with shop(
        2, database_url=order_database.runtime, redis_url=redis_url, expiry_interval_s=0.02
    ) as opened:
        yield opened


@pytest.fixture
async def resting(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """Two replicas that do not look again while the test lasts."""
    async with shop(
        2, database_url=order_database.runtime, redis_url=redis_url, expiry_interval_s=60
    ) as opened:
        yield opened


async def until(shop: Shop, order: pb.Order, state: pb.Order.State.ValueType) -> pb.Order:
    """The order once it is in this state; the test's own time limit ends the wait."""
    while True:
        now = await shop.get(order)
        if now.state == state:
            return now
        await asyncio.sleep(0.01)


async def test_an_overdue_order_expires_once_and_gives_its_stock_back(
    sweeping: Shop, order_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    tea = await sweeping.product(10)
    late = [await sweeping.order("ann", {tea: 1}) for _ in range(6)]
    early = await sweeping.order("ann", {tea: 1})
    ids = ",".join(f"'{each.order_id}'" for each in late)
    sql = sql_of(postgres_server, order_database)
    sql(f"UPDATE orders SET expire_time = now() WHERE order_id IN ({ids})")
    for each in late:
        gone = await until(sweeping, each, pb.Order.STATE_EXPIRED)
        assert gone.version == 2
    assert await sweeping.stock(tea) == (9, 1, 0)
    assert (await sweeping.get(early)).state == pb.Order.STATE_PENDING
    with refused("ORDER_NOT_CANCELLABLE"):
        await sweeping.orders.CancelOrder(cancel(late[0], "x1"))


async def test_more_orders_than_one_sweep_takes_all_expire(
    sweeping: Shop, order_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    tea = await sweeping.product(10**6)
    made = await asyncio.gather(*(sweeping.order(f"u{n}", {tea: 2}) for n in range(300)))
    sql_of(postgres_server, order_database)("UPDATE orders SET expire_time = now()")
    for each in made:
        await until(sweeping, each, pb.Order.STATE_EXPIRED)
    assert await sweeping.stock(tea) == (10**6, 0, 0)


async def test_a_paying_order_does_not_expire(
    sweeping: Shop, order_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    tea = await sweeping.product(10)
    paying, pending = [await sweeping.order("ann", {tea: 1}) for _ in range(2)]
    sql = sql_of(postgres_server, order_database)
    sql(
        f"UPDATE orders SET state = 'PAYING', version = 2 WHERE order_id = '{paying.order_id}';\n"
        "UPDATE orders SET expire_time = now();"
    )
    await until(sweeping, pending, pb.Order.STATE_EXPIRED)
    assert (await sweeping.get(paying)).state == pb.Order.STATE_PAYING
    with refused("PAYMENT_IN_PROGRESS") as told:
        await sweeping.orders.CancelOrder(cancel(paying, "x1"))
    assert told.refusal is not None
    assert told.refusal.retry_after_s is not None


async def test_an_overdue_order_that_was_not_swept_yet_can_be_cancelled(
    resting: Shop, order_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    tea = await resting.product(10)
    late = await resting.order("ann", {tea: 1})
    sql_of(postgres_server, order_database)("UPDATE orders SET expire_time = now()")
    response = await resting.orders.CancelOrder(cancel(late, "x1"))
    assert response.order.state == pb.Order.STATE_CANCELLED
    assert await resting.stock(tea) == (10, 0, 0)
