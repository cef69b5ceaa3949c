"""Two payments of one order, and a payment and a cancellation: what each guard is worth alone.

The two rivals come at once, over two replicas without Redis: both have read the order before either
writes. The guards are removed from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from deploy.local.gateway.simulator import GatewaySimulator
from order_service.store import order as order_store
from order_service.tables import ONE_LIVE_PER_ORDER
from tally.order.v1 import order_pb2 as pb
from tests.support.databases import Databases, StackDatabases
from tests.support.guards import forget_row_locks
from tests.support.orders import cancel, forget_versions, fresh, pay
from tests.support.payments import until
from tests.support.refusals import Results, outcome
from tests.support.rendezvous import Rendezvous, meet_after
from tests.support.stack import Stack, Wire, running_stack

ORDER = pb.Order


@pytest.fixture
def own_databases(databases: Databases) -> Iterator[StackDatabases]:
    with databases.clone_all() as cloned:
        yield cloned


@pytest.fixture
async def stack(
    own_databases: StackDatabases, gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    """A stack for one test, which may damage it."""
    wire = Wire()
    wire.cut_in(monkeypatch)
    async with running_stack(own_databases, gateway, "", wire) as running:
        yield running


@pytest.fixture
async def order(stack: Stack) -> pb.Order:
    """An order of a user who can pay it twice."""
    return await stack.order(await stack.user(20_000))


@pytest.fixture
def meeting(order: pb.Order, monkeypatch: pytest.MonkeyPatch) -> Rendezvous:
    """The two rivals meet when both have read the order."""
    return meet_after(monkeypatch, order_store, "lock")


@pytest.fixture
def keep_only(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Removes all guards but one."""

    async def keep(guard: str) -> None:
        if guard != "lock":
            forget_row_locks(monkeypatch)
        if guard != "version":
            forget_versions(monkeypatch)
        if guard != "index":
            await stack.databases.sql("order", f"DROP INDEX {ONE_LIVE_PER_ORDER}")

    return keep


async def sagas(stack: Stack) -> int:
    return int((await stack.databases.sql("order", "SELECT count(*) FROM sagas")).strip())


async def until_available(stack: Stack, order: pb.Order, amount_minor: int) -> None:
    await until(lambda: stack.available(order.user_id), lambda left: left == amount_minor)


def pay_twice(stack: Stack, order: pb.Order) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(outcome(stack.pay(pay(order), at))) for at in range(2)]


async def test_control_without_guards_an_order_is_paid_twice(
    stack: Stack, order: pb.Order, meeting: Rendezvous, keep_only: Callable[[str], Any]
) -> None:
    await keep_only("none")
    rivals = pay_twice(stack, order)
    await until_available(stack, order, 0)
    assert meeting.met
    assert await sagas(stack) == 2
    for rival in rivals:
        rival.cancel()


@pytest.mark.parametrize("guard", ["lock", "version", "index"])
async def test_each_guard_alone_lets_an_order_be_paid_once(
    stack: Stack, order: pb.Order, meeting: Rendezvous, keep_only: Callable[[str], Any], guard: str
) -> None:
    await keep_only(guard)
    first_step = stack.wire.hold("deduct_balance")
    rivals = pay_twice(stack, order)
    # The index guards an order while its saga is live: the second is refused before the first ends.
    await asyncio.wait(rivals, return_when=asyncio.FIRST_COMPLETED)
    first_step.open()
    results = Results.of(await asyncio.gather(*rivals))
    assert meeting.met
    assert len(results.responses) == 1
    assert results.refusals.keys() <= {"PAYMENT_IN_PROGRESS", "ORDER_NOT_PAYABLE"}
    assert await sagas(stack) == 1
    assert await stack.available(order.user_id) == 10_000
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAID


async def test_control_without_guards_a_cancelled_order_is_paid(
    stack: Stack, order: pb.Order, meeting: Rendezvous, keep_only: Callable[[str], Any]
) -> None:
    await keep_only("none")
    paying = asyncio.ensure_future(outcome(stack.pay(pay(order), 0)))
    cancelled = await stack.cancel(cancel(order, fresh()), 1)
    assert meeting.met
    assert cancelled.order.state == ORDER.STATE_CANCELLED
    await until_available(stack, order, 10_000)
    paying.cancel()


@pytest.mark.parametrize("guard", ["lock", "version"])
async def test_each_guard_alone_lets_payment_or_cancellation_win(
    stack: Stack, order: pb.Order, meeting: Rendezvous, keep_only: Callable[[str], Any], guard: str
) -> None:
    await keep_only(guard)
    paid, cancelled = await asyncio.gather(
        outcome(stack.pay(pay(order), 0)), outcome(stack.cancel(cancel(order, fresh()), 1))
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
