"""WatchOrder: the order now, then each change by any replica, until it is settled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from order_service.store.order import read_changed
from order_service.use_cases import watch
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel

PENDING, PAYING, PAID, CANCELLED = (
    pb.Order.STATE_PENDING,
    pb.Order.STATE_PAYING,
    pb.Order.STATE_PAID,
    pb.Order.STATE_CANCELLED,
)


async def watched(shop: Shop, order: pb.Order) -> AsyncIterator[pb.Order]:
    request = pb.WatchOrderRequest(order_id=order.order_id, user_id=order.user_id)
    async for response in shop.orders.WatchOrder(request):
        yield response.order


async def test_followers_on_every_replica_get_a_change(shop: Shop) -> None:
    made = await shop.order("ann", {await shop.product(10): 1})
    # Calls go to the replicas in turns: some follow where the change is made, some elsewhere.
    streams = [watched(shop, made) for _ in range(4)]
    for stream in streams:
        assert await anext(stream) == made
    cancelled = (await shop.orders.CancelOrder(cancel(made, "x1"))).order
    for stream in streams:
        assert [order async for order in stream] == [cancelled]


async def test_the_stream_of_a_settled_order_has_one_message(shop: Shop) -> None:
    made = await shop.order("ann", {await shop.product(10): 1})
    cancelled = (await shop.orders.CancelOrder(cancel(made, "x1"))).order
    assert [order async for order in watched(shop, made)] == [cancelled]


async def test_versions_never_go_back_and_the_stream_ends_when_paid(
    shop: Shop, sql: Callable[[str], str]
) -> None:
    made = await shop.order("ann", {await shop.product(10): 1})
    stream = watched(shop, made)
    seen = [await anext(stream)]
    for state in ("PAYING", "PENDING", "PAYING"):
        sql(f"UPDATE orders SET state = '{state}', version = version + 1")
        seen.append(await anext(stream))
    sql(
        "UPDATE orders SET state = 'PAID', version = version + 1,"
        " paid_by_gateway_minor = subtotal_minor"
    )
    seen += [order async for order in stream]
    assert [each.state for each in seen] == [PENDING, PAYING, PENDING, PAYING, PAID]
    assert [each.version for each in seen] == [1, 2, 3, 4, 5]


async def test_a_hundred_followers_cost_one_statement(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea = await shop.product(1_000)
    made = [await shop.order(f"u{number}", {tea: 1}) for number in range(10)]
    read: Counter[int] = Counter()

    async def counted(connection: Any, known: Any) -> Any:
        read[len(known)] += 1
        return await read_changed(connection, known)

    monkeypatch.setattr(watch, "read_changed", counted)
    streams = [watched(shop, each) for each in made for _ in range(10)]
    for stream in streams:
        await anext(stream)
    # Each replica reads all that is followed there at once.
    while not read[len(made)]:  # noqa: ASYNC110 - the test's own time limit ends the wait
        await asyncio.sleep(0.01)
    for each in made:
        await shop.orders.CancelOrder(cancel(each, f"x{each.order_id}"))
    for stream in streams:
        assert [order.state async for order in stream] == [CANCELLED]
