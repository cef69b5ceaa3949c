"""WatchOrder: now, then each change, whoever makes it, to the order's rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service.store import order_reads
from order_service.use_cases import watches
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, sql_of

PENDING, PAYING, PAID = (
    pb.Order.STATE_PENDING,
    pb.Order.STATE_PAYING,
    pb.Order.STATE_PAID,
)
CANCELLED = pb.Order.STATE_CANCELLED


def watch(order: pb.Order) -> pb.WatchOrderRequest:
    return pb.WatchOrderRequest(order_id=order.order_id, user_id=order.user_id)


async def until(happened: Callable[[], bool]) -> None:
    """Returns when it has; the test's own time limit ends the wait."""
    while not happened():  # noqa: ASYNC110 - what is waited for knows nothing of the test
        await asyncio.sleep(0.01)


async def test_followers_on_every_replica_hear_of_a_change(order: Shop) -> None:
    tea = await order.product(10)
    made = await order.order("ann", {tea: 1})
    # Calls go to the replicas in turns: some follow where the change is made, some elsewhere.
    streams = [aiter(order.orders.WatchOrder(watch(made))) for _ in range(4)]
    for stream in streams:
        assert (await anext(stream)).order == made
    gone = (await order.orders.CancelOrder(cancel(made, "x1"))).order
    for stream in streams:
        assert [response.order async for response in stream] == [gone]


async def test_a_stream_of_an_order_at_rest_is_one_message_long(order: Shop) -> None:
    tea = await order.product(10)
    made = await order.order("ann", {tea: 1})
    gone = (await order.orders.CancelOrder(cancel(made, "x1"))).order
    assert [response.order async for response in order.orders.WatchOrder(watch(made))] == [gone]


async def test_versions_never_go_back_and_the_stream_ends_when_paid(
    order: Shop, order_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    tea = await order.product(10)
    made = await order.order("ann", {tea: 1})
    sql = sql_of(postgres_server, order_database)
    stream = aiter(order.orders.WatchOrder(watch(made)))
    told = [(await anext(stream)).order]
    for state in ("PAYING", "PENDING", "PAYING"):
        sql(f"UPDATE orders SET state = '{state}', version = version + 1")
        told.append((await anext(stream)).order)
    sql(
        "UPDATE orders SET state = 'PAID', version = version + 1,"
        " paid_by_gateway_minor = subtotal_minor"
    )
    told += [response.order async for response in stream]
    assert [each.state for each in told] == [PENDING, PAYING, PENDING, PAYING, PAID]
    assert [each.version for each in told] == [1, 2, 3, 4, 5]


async def test_a_hundred_followers_cost_one_question(
    order: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea = await order.product(1_000)
    made = [await order.order(f"u{number}", {tea: 1}) for number in range(10)]
    asked: Counter[int] = Counter()
    original = order_reads.read_changed

    async def counted(connection: Any, known: Any) -> Any:
        asked[len(known)] += 1
        return await original(connection, known)

    monkeypatch.setattr(watches, "read_changed", counted)
    streams = [aiter(order.orders.WatchOrder(watch(each))) for each in made for _ in range(10)]
    for stream in streams:
        await anext(stream)
    # Each replica asks for all that is followed there at once.
    await until(lambda: asked[len(made)] > 0)
    for each in made:
        await order.orders.CancelOrder(cancel(each, f"x{each.order_id}"))
    for stream in streams:
        assert [response.order.state async for response in stream] == [CANCELLED]
