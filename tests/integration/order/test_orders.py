"""OrderService as a client sees it, but for payment."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import UNKNOWN_ID, Shop, cancel, create_order, create_product
from tests.support.refusals import refused


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


async def test_the_same_request_makes_one_order(shop: Shop) -> None:
    tea, cup = await shop.product(10), await shop.product(10)
    first = await shop.orders.CreateOrder(create_order("ann", {tea: 1, cup: 2}, "o1"))
    # The lines are a set: another order of them is the same content.
    again = await shop.orders.CreateOrder(create_order("ann", {cup: 2, tea: 1}, "o1"))
    assert again.replayed
    assert again.order == first.order
    await shop.orders.CancelOrder(cancel(first.order, "x1"))
    later = await shop.orders.CreateOrder(create_order("ann", {tea: 1, cup: 2}, "o1"))
    assert later.order == first.order
    with refused("REQUEST_ID_REUSED"):
        await shop.orders.CreateOrder(create_order("ann", {tea: 2}, "o1"))
    other = await shop.orders.CreateOrder(create_order("bob", {tea: 1, cup: 2}, "o1"))
    assert other.order.order_id != first.order.order_id
    assert await shop.stock(tea) == (9, 1, 0)


async def test_every_product_that_is_short_is_named_and_nothing_reserved(shop: Shop) -> None:
    tea, cup, pot = [await shop.product(stock) for stock in (1, 0, 9)]
    with refused("OUT_OF_STOCK") as ended:
        await shop.orders.CreateOrder(create_order("ann", {tea: 2, cup: 1, pot: 9}, "o1"))
    assert ended.refusal is not None
    assert {quota.subject for quota in ended.refusal.quota} == {f"product:{tea}", f"product:{cup}"}
    assert await shop.stock(pot) == (9, 0, 0)
    # A refusal is not stored: the same id may try again.
    await shop.order("ann", {pot: 9}, "o1")


async def test_a_hundred_short_products_are_all_named(shop: Shop) -> None:
    names = [create_product(f"p{number}", 0) for number in range(100)]
    made = await asyncio.gather(*(shop.products.CreateProduct(name) for name in names))
    lines = {response.product.product_id: 10**6 for response in made}
    with refused("OUT_OF_STOCK") as ended:
        await shop.orders.CreateOrder(create_order("ann", lines, "o1"))
    assert ended.refusal is not None
    assert {quota.subject for quota in ended.refusal.quota} == {f"product:{id_}" for id_ in lines}


async def test_products_that_do_not_exist_cannot_be_ordered(shop: Shop) -> None:
    tea = await shop.product(1)
    for unknown in (UNKNOWN_ID, "tea", tea.upper(), "\u0000", "x" * 2_000):
        with refused("PRODUCT_NOT_FOUND") as ended:
            await shop.orders.CreateOrder(create_order("ann", {tea: 1, unknown: 1}, "o1"))
        assert ended.refusal is not None
        named = ended.refusal.metadata.get("product_id")
        assert named == (UNKNOWN_ID if unknown == UNKNOWN_ID else None)
    assert await shop.stock(tea) == (1, 0, 0)


async def test_an_order_is_in_one_currency(shop: Shop) -> None:
    tea, cup = await shop.product(1), await shop.product(1, currency="USD")
    with refused("CURRENCY_MISMATCH"):
        await shop.orders.CreateOrder(create_order("ann", {tea: 1, cup: 1}, "o1"))


async def test_the_sum_of_an_order_has_a_limit(shop: Shop) -> None:
    dear = await shop.product(10**12, price=10**15)
    cheap = await shop.product(10**12, price=1)
    with refused("INVALID_FIELD", field="items"):
        await shop.orders.CreateOrder(create_order("ann", {dear: 10**6}, "o1"))
    with refused("INVALID_FIELD", field="items"):
        await shop.orders.CreateOrder(create_order("ann", {dear: 1, cheap: 1}, "o1"))
    made = await shop.order("ann", {dear: 1})
    assert made.total.amount_minor == 10**15


async def test_a_pending_order_is_cancelled_at_once_and_once(shop: Shop) -> None:
    tea = await shop.product(3)
    made = await shop.order("ann", {tea: 2})
    response = await shop.orders.CancelOrder(cancel(made, "x1", reason="too late"))
    assert response.order.state == pb.Order.STATE_CANCELLED
    assert response.order.failure_reason == "too late"
    assert response.order.version == 2
    assert not response.replayed
    assert await shop.stock(tea) == (3, 0, 0)
    again = await shop.orders.CancelOrder(cancel(made, "x1", reason="too late"))
    assert again.replayed
    assert again.order == response.order
    # Another request finds it cancelled and returns it as it is.
    other = await shop.orders.CancelOrder(cancel(made, "x2", reason="for another reason"))
    assert other.order == response.order
    assert await shop.stock(tea) == (3, 0, 0)
    with refused("REQUEST_ID_REUSED"):
        await shop.orders.CancelOrder(cancel(made, "x1", reason="other words"))


async def test_an_order_of_another_user_does_not_exist(shop: Shop) -> None:
    tea = await shop.product(3)
    made = await shop.order("ann", {tea: 2})
    with refused("ORDER_NOT_FOUND"):
        await shop.orders.CancelOrder(cancel(made, "x1", user_id="bob"))
    for order_id in (made.order_id, UNKNOWN_ID, "o", made.order_id.upper(), "\u0000"):
        with refused("ORDER_NOT_FOUND"):
            await shop.orders.GetOrder(pb.GetOrderRequest(order_id=order_id, user_id="bob"))
        with refused("ORDER_NOT_FOUND"):
            missing = pb.Order(order_id=order_id, user_id="bob")
            await shop.orders.CancelOrder(cancel(missing, "x1"))
        with refused("ORDER_NOT_FOUND"):
            async for _ in shop.orders.WatchOrder(
                pb.WatchOrderRequest(order_id=order_id, user_id="bob")
            ):
                pass
    assert (await shop.get(made)).state == pb.Order.STATE_PENDING


async def test_orders_are_listed_in_pages_newest_first(shop: Shop) -> None:
    tea = await shop.product(100)
    made = [await shop.order("ann", {tea: 1}) for _ in range(7)]
    await shop.order("bob", {tea: 1})
    for gone in made[::2]:
        await shop.orders.CancelOrder(cancel(gone, f"x-{gone.order_id}"))
    assert await _listed(shop, "ann") == [each.order_id for each in reversed(made)]
    pending = [each.order_id for each in reversed(made[1::2])]
    assert await _listed(shop, "ann", pb.Order.STATE_PENDING) == pending
    assert await _listed(shop, "ann", pb.Order.STATE_PAID) == []
    first = await shop.orders.ListOrders(pb.ListOrdersRequest(user_id="ann", page_size=2))
    for other in (
        pb.ListOrdersRequest(user_id="bob", page_token=first.next_page_token),
        pb.ListOrdersRequest(
            user_id="ann", state=pb.Order.STATE_PENDING, page_token=first.next_page_token
        ),
        pb.ListOrdersRequest(user_id="ann", page_token="x"),
    ):
        with refused("INVALID_PAGE_TOKEN"):
            await shop.orders.ListOrders(other)


async def _listed(
    shop: Shop, user_id: str, state: pb.Order.State.ValueType | None = None
) -> list[str]:
    found: list[str] = []
    token: Any = None
    while token != "":
        page = await shop.orders.ListOrders(
            pb.ListOrdersRequest(user_id=user_id, state=state, page_size=2, page_token=token)
        )
        found += [each.order_id for each in page.orders]
        token = page.next_page_token
    return found
