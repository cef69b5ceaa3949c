"""A row that somebody else holds delays only its own commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, restock

CROWD = 50


@asynccontextmanager
async def holding(urls: ServiceUrls, table: str, column: str, id_: str) -> AsyncIterator[None]:
    """Somebody else's transaction holds the row for as long as the block lasts."""
    connection = await asyncpg.connect(urls.runtime)
    try:
        async with connection.transaction():
            await connection.execute(
                f"SELECT FROM {table} WHERE {column} = $1 FOR NO KEY UPDATE", id_
            )
            yield
    finally:
        await connection.close()


async def test_a_held_product_delays_only_its_own_orders(
    order: Shop, order_database: ServiceUrls
) -> None:
    tea, cup = await order.product(10), await order.product(2 * CROWD)
    async with holding(order_database, "products", "product_id", tea):
        waiting = [
            asyncio.create_task(order.order(f"w{number}", lines))
            for number, lines in enumerate([{tea: 1}, {cup: 1, tea: 1}, {tea: 1, cup: 1}])
        ]
        restocking = asyncio.ensure_future(order.products.RestockProduct(restock(tea, 1, "r1")))
        await asyncio.gather(*(order.order(f"u{number}", {cup: 1}) for number in range(CROWD)))
        await order.products.RestockProduct(restock(cup, 1, "r2"))
        assert not any(task.done() for task in (*waiting, restocking))
    await asyncio.gather(*waiting, restocking)
    assert await order.stock(tea) == (8, 3, 0)
    assert await order.stock(cup) == (CROWD - 1, CROWD + 2, 0)


async def test_a_held_order_delays_only_its_own_cancellation(
    order: Shop, order_database: ServiceUrls
) -> None:
    tea = await order.product(10 * CROWD)
    made = [await order.order(f"u{number}", {tea: 1}) for number in range(CROWD)]
    async with holding(order_database, "orders", "order_id", made[0].order_id):
        waiting = asyncio.ensure_future(order.orders.CancelOrder(cancel(made[0], "x")))
        others = await asyncio.gather(
            *(order.orders.CancelOrder(cancel(each, "x")) for each in made[1:])
        )
        assert all(each.order.state == pb.Order.STATE_CANCELLED for each in others)
        assert not waiting.done()
    assert (await waiting).order.state == pb.Order.STATE_CANCELLED
    assert await order.stock(tea) == (10 * CROWD, 0, 0)
