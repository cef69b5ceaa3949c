"""PayOrder and CancelOrder on two replicas, whatever becomes of their sagas.

The services that a saga calls are fakes. Only the second replica looks for due sagas.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.batching.batch import Attempt
from deploy.local.postgres_roles import ServiceUrls
from order_service import wiring
from order_service.clients import Services
from order_service.settings import OrderSettings
from order_service.use_cases.order_decider import OrderLane
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, pay
from tests.support.refusals import refused
from tests.support.replicas import channel, replicas
from tests.support.sagas import LOST, REFUSED, FakeServices
from tests.support.time_limits import LONG_S, SOON_S

PAID, PAYING = pb.Order.STATE_PAID, pb.Order.STATE_PAYING
CANCELLING, CANCELLED = pb.Order.STATE_CANCELLING, pb.Order.STATE_CANCELLED
COMPLETED, NEEDS_ATTENTION = pb.Saga.STATE_COMPLETED, pb.Saga.STATE_NEEDS_ATTENTION
PAY, UNDO = "confirm_payment", "cancel_payment"
"""The only step of these payments, and that of a cancellation which compensates it."""


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> FakeServices:
    fakes = FakeServices()

    @asynccontextmanager
    async def open_fakes(_settings: OrderSettings) -> AsyncIterator[Services]:
        yield fakes.clients()

    monkeypatch.setattr(wiring, "open_services", open_fakes)
    return fakes


@pytest.fixture
async def shops(services: FakeServices, order_database: ServiceUrls) -> AsyncIterator[list[Shop]]:
    """A client of each replica."""
    settings: dict[str, Any] = {
        "database_url": order_database.runtime,
        "redis_url": "",
        # No heartbeat comes between a test and the lease that it lets expire.
        "saga_lease_s": 600.0,
        "saga_backoff_max_s": 0.05,
        "saga_attempts_max": 2,
    }

    def one(sweep_s: float) -> Any:
        return replicas(1, OrderSettings, wiring.build, saga_sweep_interval_s=sweep_s, **settings)

    async with (
        one(60.0) as first,
        one(0.05) as second,
        channel(*first) as to_first,
        channel(*second) as to_second,
    ):
        yield [Shop.at(to_first), Shop.at(to_second)]


@pytest.fixture
async def order(shops: list[Shop]) -> pb.Order:
    return await shops[0].order("ann", {await shops[0].product(5): 2})


@pytest.fixture
def passes(order: pb.Order, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The commands that pass through the order lanes of both replicas."""
    counted: Counter[str] = Counter()
    submit: Any = OrderLane.submit

    async def count(lane: OrderLane, command: Any) -> Any:
        counted[type(command).__name__] += 1
        return await submit(lane, command)

    monkeypatch.setattr(OrderLane, "submit", count)
    return counted


def paying(shop: Shop, order: pb.Order, request_id: str = "p1") -> Any:
    """The call, which has begun."""
    request = pay(order, request_id, payment_key="key")
    return asyncio.ensure_future(shop.orders.PayOrder(request, timeout=LONG_S))


def cancelling(shop: Shop, order: pb.Order, request_id: str = "x1") -> Any:
    """The call, which has begun."""
    return asyncio.ensure_future(shop.orders.CancelOrder(cancel(order, request_id), timeout=LONG_S))


async def saga_in(shop: Shop, state: pb.Saga.State.ValueType) -> pb.Saga:
    """The test's last saga, when it is in this state."""
    request = pb.ListSagasRequest(state=state)
    while not (sagas := (await shop.sagas.ListSagas(request)).sagas):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    saga: pb.Saga = sagas[0]
    return saga


# -- a saga that ends where it was begun ---------------------------------------------------------


async def test_a_payment_and_its_cancellation_take_two_passes_each(
    shops: list[Shop], order: pb.Order, passes: Counter[str]
) -> None:
    paid = await paying(shops[0], order)
    assert (paid.order.state, paid.replayed) == (PAID, False)
    assert passes == {"PayOrder": 1, "CloseSaga": 1}
    assert paid.order == await shops[1].get(order)
    passes.clear()
    cancelled = await cancelling(shops[0], order)
    assert (cancelled.order.state, cancelled.replayed) == (CANCELLED, False)
    assert passes == {"CancelOrder": 1, "CloseSaga": 1}


# -- a saga that ends elsewhere ------------------------------------------------------------------


async def test_a_payment_whose_saga_is_lost_returns_the_stored_response(
    shops: list[Shop],
    order: pb.Order,
    passes: Counter[str],
    services: FakeServices,
    sql: Callable[[str], str],
) -> None:
    gate = services.hold(PAY)
    response = paying(shops[0], order)
    await gate.reached()
    sql("UPDATE sagas SET lease_until = '-infinity'")
    await saga_in(shops[1], COMPLETED)
    paid = await shops[1].get(order)
    assert (await cancelling(shops[1], order)).order.state == CANCELLED
    assert not response.done()
    gate.open()
    assert (await response).order == paid, "as it was when it was paid, not as it is now"
    assert not (await response).replayed
    assert passes == {"PayOrder": 1, "CancelOrder": 1, "CloseSaga": 2}


async def test_a_payment_whose_saga_is_lost_returns_the_stored_refusal(
    shops: list[Shop], order: pb.Order, services: FakeServices, sql: Callable[[str], str]
) -> None:
    services.errors[PAY] = [REFUSED]
    gate = services.hold(f"{PAY}:undo")
    response = paying(shops[0], order)
    await gate.reached()
    sql("UPDATE sagas SET lease_until = '-infinity'")
    await saga_in(shops[1], pb.Saga.STATE_COMPENSATED)
    gate.open()
    with refused("NO_THANKS"):
        await response


async def test_a_payment_whose_saga_waits_in_its_row_returns_at_its_end(
    shops: list[Shop], order: pb.Order, passes: Counter[str], services: FakeServices
) -> None:
    services.errors[PAY] = [LOST]
    response = await paying(shops[0], order)
    assert (response.order.state, response.replayed) == (PAID, False)
    assert passes == {"PayOrder": 1, "CloseSaga": 1}
    assert (await saga_in(shops[0], COMPLETED)).epoch == 2


@pytest.mark.parametrize("method", ["RetrySaga", "ResolveSaga"])
async def test_a_payment_whose_saga_a_person_ends_returns_at_its_end(
    shops: list[Shop], order: pb.Order, services: FakeServices, method: str
) -> None:
    services.errors[PAY] = [LOST, LOST]
    response = paying(shops[0], order)
    saga = await saga_in(shops[1], NEEDS_ATTENTION)
    assert not response.done()
    ids = {"saga_id": saga.saga_id, "request_id": "o1"}
    if method == "RetrySaga":
        await shops[1].sagas.RetrySaga(pb.RetrySagaRequest(**ids))
        assert (await response).order.state == PAID
    else:
        await shops[1].sagas.ResolveSaga(pb.ResolveSagaRequest(**ids, reason="not charged"))
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await response


@pytest.mark.parametrize("gone", [False, True], ids=["deadline", "gone"])
async def test_a_payment_outlasts_its_caller(
    shops: list[Shop], order: pb.Order, services: FakeServices, gone: bool
) -> None:
    gate = services.hold(PAY)
    request = pay(order, "p1", payment_key="key")
    if gone:
        call = paying(shops[0], order, "p1")
        await gate.reached()
        call.cancel()
    else:
        with refused("REQUEST_IN_PROGRESS"):
            await shops[0].orders.PayOrder(request, timeout=SOON_S)
    repeated = [
        asyncio.ensure_future(shop.orders.PayOrder(request, timeout=LONG_S)) for shop in shops
    ]
    gate.open()
    for response in await asyncio.gather(*repeated):
        assert (response.order.state, response.replayed) == (PAID, True)


# -- duplicates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["", "NO_THANKS"], ids=["paid", "refused"])
async def test_duplicates_on_any_replica_get_the_first_calls_result(
    shops: list[Shop],
    order: pb.Order,
    passes: Counter[str],
    services: FakeServices,
    reason: str,
) -> None:
    if reason:
        services.errors[PAY] = [REFUSED]
    gate = services.hold(PAY)
    calls = [paying(shops[0], order)]
    await gate.reached()
    calls += [paying(shop, order) for shop in shops]
    while passes["PayOrder"] < len(calls):  # noqa: ASYNC110 - the test's own limit ends the wait
        await asyncio.sleep(0.01)
    gate.open()
    if reason:
        for call in calls:
            with refused(reason):
                await call
    else:
        first, *others = [await call for call in calls]
        assert not first.replayed
        assert all(other.replayed and other.order == first.order for other in others)
    assert passes == {"PayOrder": 3, "CloseSaga": 1}
    assert services.calls.count(PAY) == 1


async def test_cancellations_of_a_cancelling_order_wait_only_if_repeated(
    shops: list[Shop], order: pb.Order, services: FakeServices
) -> None:
    await paying(shops[0], order)
    gate = services.hold(UNDO)
    first = cancelling(shops[0], order, "x1")
    await gate.reached()
    other = await cancelling(shops[1], order, "x2")
    assert (other.order.state, other.replayed) == (CANCELLING, False)
    in_time = await shops[0].orders.CancelOrder(cancel(order, "x1"), timeout=SOON_S)
    assert (in_time.order.state, in_time.replayed) == (CANCELLING, True)
    repeated = [cancelling(shop, order, id_) for shop in shops for id_ in ("x1", "x2")]
    await asyncio.sleep(0.05)
    assert not any(call.done() for call in (first, *repeated))
    gate.open()
    assert ((await first).order.state, (await first).replayed) == (CANCELLED, False)
    for call in repeated:
        assert ((await call).order.state, (await call).replayed) == (CANCELLED, True)
    assert services.calls.count(UNDO) == 1


# -- a COMMIT whose reply is lost ----------------------------------------------------------------


def lose_commit(monkeypatch: pytest.MonkeyPatch, command: str) -> list[str]:
    """Lose the reply to the next COMMIT of a command of this type; it is then in the list."""
    run: Any = Attempt.run
    lost: list[str] = []

    async def run_and_lose(attempt: Any, entries: Sequence[Any], *, wait_for_locks: bool) -> Any:
        outcomes = await run(attempt, entries, wait_for_locks=wait_for_locks)
        if command in {type(entry.command).__name__ for entry in entries} and not lost:
            lost.append(command)
            raise ConnectionResetError
        return outcomes

    monkeypatch.setattr(Attempt, "run", run_and_lose)
    return lost


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("pay", "PayOrder"),
        ("pay", "CloseSaga"),
        ("cancel", "CancelOrder"),
        ("cancel", "CloseSaga"),
    ],
)
async def test_a_call_returns_its_result_if_a_commits_reply_is_lost(
    shops: list[Shop],
    order: pb.Order,
    services: FakeServices,
    monkeypatch: pytest.MonkeyPatch,
    *,
    method: str,
    command: str,
) -> None:
    cancels = method == "cancel"
    if cancels:
        await paying(shops[0], order)
    lost = lose_commit(monkeypatch, command)
    response = await (cancelling if cancels else paying)(shops[0], order)
    assert lost
    assert (response.order.state, response.replayed) == (CANCELLED if cancels else PAID, False)
    assert (await saga_in(shops[0], COMPLETED)).epoch == 1
    assert services.calls == ([PAY, UNDO] if cancels else [PAY])
