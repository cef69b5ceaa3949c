"""Two payments of one order, and a payment and a cancellation: what each guard is worth alone.

The two rivals come at the same moment, over two replicas without Redis: both have read the order
before either writes. The guards are taken away from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from deploy.local.gateway.simulator import GatewaySimulator
from order_service import tables
from order_service.store import orders as order_rows
from order_service.tables import ONE_LIVE_PER_ORDER
from tally.order.v1 import order_pb2 as pb
from tests.support.databases import Databases, StackDatabases
from tests.support.order_crowd import unlock_orders
from tests.support.orders import cancel
from tests.support.refusals import outcome
from tests.support.rendezvous import Rendezvous, meet_after
from tests.support.stack import Stack, Wire, fresh, pay, running_stack
from tests.support.time_limits import LONG_S

ORDER = pb.Order


@pytest.fixture
def own_databases(databases: Databases) -> Iterator[StackDatabases]:
    with databases.clone_all() as opened:
        yield opened


@pytest.fixture
async def stack(own_databases: StackDatabases, gateway: GatewaySimulator) -> AsyncIterator[Stack]:
    """A stack for one test, which may leave it damaged."""
    async with running_stack(own_databases, gateway, "", Wire()) as running:
        yield running


def forget_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders are written whatever has become of them since they were read."""
    changed = order_rows._changed
    columns = set(tables.orders.c.keys()) & set(changed.c.keys()) - {"order_id"}
    monkeypatch.setattr(
        order_rows,
        "_SAVE",
        sa.update(tables.orders)
        .values({name: changed.c[name] for name in columns})
        .where(tables.orders.c.order_id == changed.c.order_id),
    )


async def drop_index(stack: Stack) -> None:
    await stack.databases.sql("order", f"DROP INDEX {ONE_LIVE_PER_ORDER}")


async def sagas(stack: Stack) -> int:
    return int((await stack.databases.sql("order", "SELECT count(*) FROM sagas")).strip())


async def two_payments(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> tuple[pb.Order, Rendezvous, list[asyncio.Task[Any]]]:
    """Two payments of one order whose user could pay it twice, each at a replica of its own."""
    order = await stack.order(await stack.user(20_000))
    meeting = meet_after(monkeypatch, order_rows, "load")
    rivals = [asyncio.ensure_future(outcome(stack.pay(pay(order), at))) for at in range(2)]
    return order, meeting, rivals


async def test_control_without_guards_an_order_is_paid_twice(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlock_orders(monkeypatch)
    forget_versions(monkeypatch)
    await drop_index(stack)
    order, meeting, rivals = await two_payments(stack, monkeypatch)
    async with asyncio.timeout(LONG_S):
        while await stack.available(order.user_id) > 0:  # noqa: ASYNC110 - it is elsewhere
            await asyncio.sleep(0.02)
    assert meeting.met
    assert await sagas(stack) == 2
    for rival in rivals:
        rival.cancel()


@pytest.mark.parametrize("guard", ["lock", "version", "index"])
async def test_each_guard_alone_lets_an_order_be_paid_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    if guard != "lock":
        unlock_orders(monkeypatch)
    if guard != "version":
        forget_versions(monkeypatch)
    if guard != "index":
        await drop_index(stack)
    order, meeting, rivals = await two_payments(stack, monkeypatch)
    told = await asyncio.gather(*rivals)
    assert meeting.met
    turned_away = [answer for answer in told if isinstance(answer, str)]
    assert len(turned_away) == 1
    assert turned_away[0] in {"PAYMENT_IN_PROGRESS", "ORDER_NOT_PAYABLE"}
    assert await sagas(stack) == 1
    assert await stack.available(order.user_id) == 10_000
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAID


async def test_control_without_guards_a_cancelled_order_is_paid(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlock_orders(monkeypatch)
    forget_versions(monkeypatch)
    order = await stack.order(await stack.user(20_000))
    meeting = meet_after(monkeypatch, order_rows, "load")
    paying = asyncio.ensure_future(outcome(stack.pay(pay(order), 0)))
    cancelled = await stack.shops[1].orders.CancelOrder(cancel(order, fresh()))
    assert meeting.met
    assert cancelled.order.state == ORDER.STATE_CANCELLED
    async with asyncio.timeout(LONG_S):
        while await stack.available(order.user_id) > 10_000:  # noqa: ASYNC110 - it is elsewhere
            await asyncio.sleep(0.02)
    paying.cancel()


@pytest.mark.parametrize("guard", ["lock", "version"])
async def test_each_guard_alone_lets_payment_or_cancellation_win(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    if guard == "lock":
        forget_versions(monkeypatch)
    else:
        unlock_orders(monkeypatch)
    order = await stack.order(await stack.user(20_000))
    meeting = meet_after(monkeypatch, order_rows, "load")
    paid, cancelled = await asyncio.gather(
        outcome(stack.pay(pay(order), 0)),
        outcome(stack.shops[1].orders.CancelOrder(cancel(order, fresh()))),
    )
    assert meeting.met
    if isinstance(paid, str) or not isinstance(cancelled, str):
        # Cancelled while it was pending, or, decided again, after it had been paid.
        assert not isinstance(paid, str) or paid == "ORDER_NOT_PAYABLE"
        assert not isinstance(cancelled, str)
        await stack.until(order, ORDER.STATE_CANCELLED)
        assert await stack.available(order.user_id) == 20_000
        assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)
    else:
        assert cancelled == "PAYMENT_IN_PROGRESS"
        assert await stack.available(order.user_id) == 10_000
        assert await stack.shop.stock(order.items[0].product_id) == (3, 0, 2)
