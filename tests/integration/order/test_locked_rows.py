"""A row that another transaction has locked delays only the commands that need it."""

from __future__ import annotations

import asyncio

from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.databases import open_transaction
from tests.support.orders import Shop, cancel, restock

OTHERS = 50


async def test_a_locked_product_delays_only_its_own_orders(
    shop: Shop, order_database: ServiceUrls
) -> None:
    tea, cup = await shop.product(10), await shop.product(2 * OTHERS)
    lock = f"SELECT FROM products WHERE product_id = '{tea}' FOR NO KEY UPDATE"
    async with open_transaction(order_database, lock):
        waiting = [
            asyncio.ensure_future(shop.order(f"w{number}", lines))
            for number, lines in enumerate([{tea: 1}, {cup: 1, tea: 1}, {tea: 1, cup: 1}])
        ]
        restocking = asyncio.ensure_future(shop.products.RestockProduct(restock(tea, 1, "r1")))
        await asyncio.gather(*(shop.order(f"u{number}", {cup: 1}) for number in range(OTHERS)))
        await shop.products.RestockProduct(restock(cup, 1, "r2"))
        assert not any(call.done() for call in (*waiting, restocking))
    await asyncio.gather(*waiting, restocking)
    assert await shop.stock(tea) == (8, 3, 0)
    assert await shop.stock(cup) == (OTHERS - 1, OTHERS + 2, 0)


async def test_a_locked_order_delays_only_its_own_cancellation(
    shop: Shop, order_database: ServiceUrls
) -> None:
    tea = await shop.product(10 * OTHERS)
    made = [await shop.order(f"u{number}", {tea: 1}) for number in range(OTHERS)]
    lock = f"SELECT FROM orders WHERE order_id = '{made[0].order_id}' FOR NO KEY UPDATE"
    async with open_transaction(order_database, lock):
        waiting = asyncio.ensure_future(shop.orders.CancelOrder(cancel(made[0], "x")))
        others = await asyncio.gather(
            *(shop.orders.CancelOrder(cancel(each, "x")) for each in made[1:])
        )
        assert all(each.order.state == pb.Order.STATE_CANCELLED for each in others)
        assert not waiting.done()
    assert (await waiting).order.state == pb.Order.STATE_CANCELLED
    assert await shop.stock(tea) == (10 * OTHERS, 0, 0)
