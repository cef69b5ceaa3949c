"""PayOrder and CancelOrder on two replicas, whatever becomes of their sagas.

The services that a saga calls are fakes. Only the second replica looks for due sagas.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from common.batching.batch import Attempt
from common.rpc.status import from_rpc_error
from deploy.local.postgres_roles import ServiceUrls
from order_service import wiring
from order_service.clients import Services
from order_service.settings import OrderSettings
from order_service.use_cases.order_lane import OrderLane
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, pay
from tests.support.refusals import outcome, refused
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
    async def open_fakes(_settings: OrderSettings, _token: object) -> AsyncIterator[Services]:
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
        "saga_attention_s": 0.001,
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


@dataclass
class Case:
    """An order, a client of each replica, and what the replicas call."""

    shops: list[Shop]
    services: FakeServices
    order: pb.Order
    sql: Callable[[str], str]
    passes: Counter[str] = field(default_factory=Counter)
    """The commands that pass through the order lanes of both replicas."""

    def pay(self, replica: int = 0, *, timeout_s: float = LONG_S) -> Any:
        """The call, which has begun; always the same request."""
        call = self.shops[replica].orders.PayOrder
        return asyncio.ensure_future(
            call(pay(self.order, "p1", payment_key="key"), timeout=timeout_s)
        )

    def cancel(self, replica: int = 0, request_id: str = "x1", *, timeout_s: float = LONG_S) -> Any:
        """The call, which has begun."""
        call = self.shops[replica].orders.CancelOrder
        return asyncio.ensure_future(call(cancel(self.order, request_id), timeout=timeout_s))

    async def saga_in(self, state: pb.Saga.State.ValueType) -> pb.Saga:
        """The test's last saga, when it is in this state."""
        request = pb.ListSagasRequest(state=state)
        while not (sagas := (await self.shops[1].sagas.ListSagas(request)).sagas):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        saga: pb.Saga = sagas[0]
        return saga


@pytest.fixture
async def case(
    shops: list[Shop],
    services: FakeServices,
    sql: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Case:
    made = Case(shops, services, await shops[0].order("ann", {await shops[0].product(5): 2}), sql)
    submit: Any = OrderLane.submit

    async def count(lane: OrderLane, command: Any) -> Any:
        made.passes[type(command).__name__] += 1
        return await submit(lane, command)

    monkeypatch.setattr(OrderLane, "submit", count)
    return made


# -- a saga that ends where it was begun ---------------------------------------------------------


async def test_a_payment_and_its_cancellation_take_two_passes_each(case: Case) -> None:
    paid = await case.pay()
    assert (paid.order.state, paid.replayed) == (PAID, False)
    assert case.passes == {"PayOrder": 1, "CloseSaga": 1}
    assert paid.order == await case.shops[1].get(case.order)
    case.passes.clear()
    cancelled = await case.cancel()
    assert (cancelled.order.state, cancelled.replayed) == (CANCELLED, False)
    assert case.passes == {"CancelOrder": 1, "CloseSaga": 1}


# -- a saga that ends elsewhere ------------------------------------------------------------------


async def test_a_payment_whose_saga_is_lost_returns_the_stored_response(case: Case) -> None:
    gate = case.services.hold(PAY)
    response = case.pay()
    await gate.reached()
    case.sql("UPDATE sagas SET lease_until = '-infinity'")
    await case.saga_in(COMPLETED)
    paid = await case.shops[1].get(case.order)
    assert (await case.cancel(1)).order.state == CANCELLED
    assert not response.done()
    gate.open()
    assert (await response).order == paid, "as it was when it was paid, not as it is now"
    assert not (await response).replayed
    assert case.passes == {"PayOrder": 2, "CancelOrder": 1, "CloseSaga": 2}, "begun and replayed"


async def test_a_payment_whose_saga_waits_in_its_row_returns_at_its_end(case: Case) -> None:
    case.services.errors[PAY] = [LOST]
    response = await case.pay()
    assert (response.order.state, response.replayed) == (PAID, False)
    assert case.passes == {"PayOrder": 2, "CloseSaga": 1}, "begun and replayed"
    assert (await case.saga_in(COMPLETED)).epoch == 2


@pytest.mark.parametrize("method", ["RetrySaga", "ResolveSaga"])
async def test_a_payment_returns_when_an_operator_ends_its_saga(case: Case, method: str) -> None:
    case.services.errors[PAY] = [LOST] * 1_000
    response = case.pay()
    saga = await case.saga_in(NEEDS_ATTENTION)
    assert not response.done()
    ids: dict[str, Any] = {"saga_id": saga.saga_id, "request_id": "o1"}
    if method == "RetrySaga":
        await case.shops[1].sagas.RetrySaga(pb.RetrySagaRequest(**ids))
        case.services.errors.clear()
        assert (await response).order.state == PAID
    else:
        await case.shops[1].sagas.ResolveSaga(pb.ResolveSagaRequest(**ids, reason="not charged"))
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await response


@pytest.mark.parametrize("gone", [False, True], ids=["deadline", "gone"])
async def test_a_payment_outlasts_its_caller(case: Case, gone: bool) -> None:
    gate = case.services.hold(PAY)
    if gone:
        call = case.pay()
        await gate.reached()
        call.cancel()
    else:
        with refused("REQUEST_IN_PROGRESS"):
            await case.pay(timeout_s=SOON_S)
    repeated = [case.pay(0), case.pay(1)]
    gate.open()
    for response in await asyncio.gather(*repeated):
        assert (response.order.state, response.replayed) == (PAID, True)


async def test_payments_at_a_slow_gateway_refuse_none_without_it(
    services: FakeServices, order_database: ServiceUrls
) -> None:
    settings = {"database_url": order_database.runtime, "redis_url": "", "saga_running_max": 4}
    gate = services.hold(PAY)
    async with (
        replicas(1, OrderSettings, wiring.build, **settings) as [address],
        channel(address) as opened,
    ):
        shop = Shop.at(opened)
        product_id = await shop.product(20)
        other, *cards = [await shop.order("ann", {product_id: 1}) for _ in range(11)]
        burst = [
            asyncio.ensure_future(shop.orders.PayOrder(pay(order, payment_key=f"{number}")))
            for number, order in enumerate(cards)
        ]
        await gate.reached()
        paid = await shop.orders.PayOrder(pay(other), timeout=LONG_S)
        assert paid.order.state == PAID
        gate.open()
        ends = await asyncio.gather(*burst, return_exceptions=True)
    refusals = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert [from_rpc_error(each).reason for each in refusals] == ["OVERLOADED"] * 7


# -- duplicates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["", "NO_THANKS"], ids=["paid", "refused"])
async def test_duplicates_on_any_replica_get_the_first_calls_result(
    case: Case, reason: str
) -> None:
    if reason:
        case.services.errors[PAY] = [REFUSED]
    gate = case.services.hold(PAY)
    calls = [case.pay()]
    await gate.reached()
    calls += [case.pay(0), case.pay(1)]
    while case.passes["PayOrder"] < len(calls):  # noqa: ASYNC110 - the test's own limit ends the wait
        await asyncio.sleep(0.01)
    gate.open()
    first, *others = [await outcome(call) for call in calls]
    if reason:
        assert [first, *others] == [reason] * 3
    else:
        assert not first.replayed
        assert all(other.replayed and other.order == first.order for other in others)
    # The other replica has the result of its own watch, or replays the stored one.
    assert case.passes["PayOrder"] in {3, 4}
    assert case.passes["CloseSaga"] == case.services.calls.count(PAY) == 1


async def test_cancellations_of_a_cancelling_order_wait_only_if_repeated(case: Case) -> None:
    await case.pay()
    gate = case.services.hold(UNDO)
    first = case.cancel()
    await gate.reached()
    other = await case.cancel(1, "x2")
    assert (other.order.state, other.replayed) == (CANCELLING, False)
    in_time = await case.cancel(timeout_s=SOON_S)
    assert (in_time.order.state, in_time.replayed) == (CANCELLING, True)
    repeated = [case.cancel(replica, id_) for replica in (0, 1) for id_ in ("x1", "x2")]
    await asyncio.sleep(0.05)
    assert not any(call.done() for call in (first, *repeated))
    gate.open()
    assert ((await first).order.state, (await first).replayed) == (CANCELLED, False)
    for call in repeated:
        assert ((await call).order.state, (await call).replayed) == (CANCELLED, True)
    assert case.services.calls.count(UNDO) == 1


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
    case: Case, monkeypatch: pytest.MonkeyPatch, method: str, command: str
) -> None:
    cancels = method == "cancel"
    if cancels:
        await case.pay()
    lost = lose_commit(monkeypatch, command)
    response = await (case.cancel() if cancels else case.pay())
    assert lost
    assert (response.order.state, response.replayed) == (CANCELLED if cancels else PAID, False)
    assert (await case.saga_in(COMPLETED)).epoch == 1
    assert case.services.calls == ([PAY, UNDO] if cancels else [PAY])
