"""OrderService as a client sees it, but for payment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from typing import Any

import grpc

from common import paging
from deploy.local.postgres_roles import ServiceUrls
from order_service.settings import OrderSettings
from order_service.wiring import build
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import UNKNOWN_ID, Shop, cancel, create_order, create_product
from tests.support.pages import pages_of
from tests.support.refusals import refused
from tests.support.replicas import replicas


async def test_an_order_reserves_its_stock_at_the_current_prices(shop: Shop) -> None:
    tea, cup = await shop.product(10, price=300), await shop.product(5, price=50)
    response = await shop.orders.CreateOrder(create_order("ann", {cup: 1, tea: 3}, "o1"))
    made = response.order
    assert not response.replayed
    assert made.state == pb.Order.STATE_PENDING
    assert [item.product_id for item in made.items] == sorted([tea, cup])
    assert {item.product_id: item.amount.amount_minor for item in made.items} == {tea: 900, cup: 50}
    assert made.subtotal.amount_minor == made.total.amount_minor == 950
    assert made.discount.amount_minor == made.paid_by_balance.amount_minor == 0
    assert made.version == 1
    assert made.expire_time.ToDatetime() - made.create_time.ToDatetime() == timedelta(minutes=15)
    assert await shop.stock(tea) == (7, 3, 0)
    assert await shop.stock(cup) == (4, 1, 0)
    assert await shop.get(made) == made


async def test_an_operator_reads_an_order_without_its_user(shop: Shop) -> None:
    """Another user does not; and to leave the user empty is not to leave it out."""
    tea = await shop.product(10)
    made = (await shop.orders.CreateOrder(create_order("ann", {tea: 1}, "o1"))).order
    found = await shop.orders.GetOrder(pb.GetOrderRequest(order_id=made.order_id))
    assert found.order == made
    with refused("ORDER_NOT_FOUND"):
        await shop.orders.GetOrder(pb.GetOrderRequest(order_id=made.order_id, user_id="bob"))
    with refused("INVALID_FIELD"):
        await shop.orders.GetOrder(pb.GetOrderRequest(order_id=made.order_id, user_id=""))
    with refused("ORDER_NOT_FOUND"):
        await shop.orders.GetOrder(pb.GetOrderRequest(order_id=UNKNOWN_ID))


async def test_the_same_request_makes_one_order(shop: Shop) -> None:
    tea, cup = await shop.product(10), await shop.product(10)
    first = await shop.orders.CreateOrder(create_order("ann", {tea: 1, cup: 2}, "o1"))
    # The lines are a set: another order of them is the same content.
    again = await shop.orders.CreateOrder(create_order("ann", {cup: 2, tea: 1}, "o1"))
    assert (again.replayed, again.order) == (True, first.order)
    await shop.orders.CancelOrder(cancel(first.order, "x1"))
    later = await shop.orders.CreateOrder(create_order("ann", {tea: 1, cup: 2}, "o1"))
    assert later.order == first.order
    other = await shop.orders.CreateOrder(create_order("bob", {tea: 1, cup: 2}, "o1"))
    assert other.order.order_id != first.order.order_id
    assert await shop.stock(tea) == (9, 1, 0)


async def test_every_product_that_is_short_is_named_and_nothing_reserved(shop: Shop) -> None:
    tea, cup, pot = [await shop.product(stock) for stock in (1, 0, 9)]
    with refused("OUT_OF_STOCK") as ended:
        await shop.orders.CreateOrder(create_order("ann", {tea: 2, cup: 1, pot: 9}, "o1"))
    assert {quota.subject: quota.description for quota in ended.refusal.quota} == {
        f"product:{tea}": "1 free, 2 asked",
        f"product:{cup}": "0 free, 1 asked",
    }
    assert await shop.stock(pot) == (9, 0, 0)
    # A refusal is not stored: the same id may try again.
    await shop.order("ann", {pot: 9}, "o1")


async def test_a_hundred_short_products_are_all_named(shop: Shop) -> None:
    names = [create_product(f"p{number}", 0) for number in range(100)]
    made = await asyncio.gather(*(shop.products.CreateProduct(name) for name in names))
    lines = {response.product.product_id: 10**6 for response in made}
    with refused("OUT_OF_STOCK") as ended:
        await shop.orders.CreateOrder(create_order("ann", lines, "o1"))
    assert {quota.subject for quota in ended.refusal.quota} == {f"product:{id_}" for id_ in lines}


async def test_a_pending_order_is_cancelled_once(shop: Shop) -> None:
    tea = await shop.product(3)
    made = await shop.order("ann", {tea: 2})
    response = await shop.orders.CancelOrder(cancel(made, "x1", reason="too late"))
    assert response.order.state == pb.Order.STATE_CANCELLED
    assert response.order.failure_reason == "too late"
    assert response.order.version == 2
    assert not response.replayed
    assert await shop.stock(tea) == (3, 0, 0)
    again = await shop.orders.CancelOrder(cancel(made, "x1", reason="too late"))
    assert (again.replayed, again.order) == (True, response.order)
    # Another request finds it cancelled and returns it as it is.
    other = await shop.orders.CancelOrder(cancel(made, "x2", reason="for another reason"))
    assert other.order == response.order
    assert await shop.stock(tea) == (3, 0, 0)


async def test_orders_are_listed_in_pages_newest_first(shop: Shop) -> None:
    tea = await shop.product(100)
    made = [await shop.order("ann", {tea: 1}) for _ in range(7)]
    await shop.order("bob", {tea: 1})
    for gone in made[::2]:
        await shop.orders.CancelOrder(cancel(gone, f"x-{gone.order_id}"))
    assert await listed(shop) == [each.order_id for each in reversed(made)]
    pending = [each.order_id for each in reversed(made[1::2])]
    assert await listed(shop, state=pb.Order.STATE_PENDING) == pending
    assert await listed(shop, state=pb.Order.STATE_PAID) == []


async def test_500_orders_of_100_lines_are_listed_in_pages_that_fit(
    order_database: ServiceUrls, sql: Callable[[str], str]
) -> None:
    sql(
        "INSERT INTO orders SELECT gen_random_uuid(), 'ann', 'r' || n, 'KRW', 1, 0, 0, 0, NULL,"
        " NULL, 'PENDING', '', 1, now(), now() + interval '1 day',"
        " now() FROM generate_series(1, 500) AS n;"
        "INSERT INTO order_items SELECT order_id, gen_random_uuid(), 1000000, 1000000000"
        " FROM orders, generate_series(1, 100)"
    )
    request = pb.ListOrdersRequest(user_id="ann", page_size=500)
    pages: list[list[str]] = []
    settings = {"database_url": order_database.runtime, "redis_url": ""}
    # A client of any kind: it accepts 4 MiB, and does not follow the server's health.
    async with (
        replicas(1, OrderSettings, build, **settings) as [address],
        grpc.aio.insecure_channel(address) as opened,
    ):
        shop = Shop.at(opened)
        while not pages or request.page_token:
            page = await shop.orders.ListOrders(request)
            assert page.ByteSize() <= paging.BYTES_MAX
            pages.append([order.order_id for order in page.orders])
            request.page_token = page.next_page_token
    assert len(set(chain.from_iterable(pages))) == 500
    assert all(len(page) > 50 for page in pages[:-1])


async def listed(shop: Shop, **state: Any) -> list[str]:
    request = pb.ListOrdersRequest(user_id="ann", page_size=2, **state)
    return [
        each.order_id for page in await pages_of(shop.orders.ListOrders, request) for each in page
    ]
