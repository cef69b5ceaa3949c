"""Several commands about one order and its sagas in one batch of the order lane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.database import Database, open_pools
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyStore
from common.errors import Code, Refusal, RemoteRefusal
from common.ids import new_id
from common.request_key import Result
from deploy.local.postgres_roles import ServiceUrls
from order_service.errors import SagaLost
from order_service.model.order import CancelOrder, Order, OrderState, PayOrder
from order_service.model.saga import Saga, SagaState, StepState
from order_service.model.saga_command import (
    CloseSaga,
    NoteFailure,
    ResolveSaga,
    RetrySaga,
    Standing,
    TakeOverSagas,
    WriteSaga,
)
from order_service.model.saga_input import CancelInput
from order_service.saga.plan import PLANS
from order_service.store import journal as journal_store
from order_service.store import order as order_store
from order_service.store import saga as saga_store
from order_service.tables import answers
from order_service.use_cases.order_decider import OrderDecider, OrderTimes
from order_service.use_cases.saga_decisions import SagaBegun
from tests.support.orders import open_shop

TIMES = OrderTimes(expiry=timedelta(minutes=15), pay_within_s=20.0, saga_lease_s=600.0)
COMPENSATING, UNKNOWN = SagaState.COMPENSATING, StepState.UNKNOWN
DECLINED = RemoteRefusal(Code.FAILED_PRECONDITION, "PAYMENT_DECLINED", "no", {})


@dataclass
class Batches:
    """The lane's decider, so that a test says what is in a batch."""

    database: Database
    order_id: str

    def __post_init__(self) -> None:
        self._decide = OrderDecider(IdempotencyStore(answers), TIMES, owner="one")

    async def decide(self, *commands: Any) -> list[Any]:
        """The outcomes of the commands in one batch."""
        async with self.database.begin() as connection:
            return await self._decide(connection, commands, wait_for_locks=True)

    def pay(self, request_id: str = "p1") -> PayOrder:
        return PayOrder(self.order_id, "ann", None, None, None, request_id, saga_id=new_id())

    def cancel(self, request_id: str = "x1") -> CancelOrder:
        return CancelOrder(self.order_id, "ann", "changed my mind", request_id, saga_id=new_id())

    async def begin(self, command: PayOrder | CancelOrder | None = None) -> Saga:
        (begun,) = await self.decide(command or self.pay())
        return begun_saga(begun)

    async def paid(self) -> Saga:
        """The order is paid, with this saga."""
        saga = await self.begin()
        (closed,) = await self.decide(CloseSaga(saga))
        assert closed.value.state is OrderState.PAID
        return saga

    async def park(self, done: str = "") -> Saga:
        """A saga that needs attention, with the step ``done``."""
        saga = await self.begin()
        if done:
            saga.step(done).state = StepState.DONE
        saga.wait("UNAVAILABLE")
        saga.flag()
        saga.snapshot += 1
        async with self.database.begin() as connection:
            await journal_store.write(connection, [WriteSaga(saga, 0.0)])
        return saga

    async def take_over(self) -> Saga:
        """The one live saga is taken over by another replica."""
        plans = [(kind.value, version) for kind, version in PLANS]
        one = TakeOverSagas(
            "two", 600.0, uses_gateway=True, capacity=1, retries=1, away=(), plans=plans
        )
        async with self.database.begin() as connection:
            await connection.execute(sa.text("UPDATE sagas SET lease_until = '-infinity'"))
            (taken,) = [
                saga
                for command in (one, replace(one, uses_gateway=False))
                for saga in (await journal_store.take_over(connection, command)).sagas
            ]
        return taken

    async def saga(self, saga_id: str) -> Saga:
        async with self.database.reads.connect() as connection:
            saga = await saga_store.read_saga(connection, saga_id)
        assert saga is not None
        return saga

    async def order(self) -> Order:
        async with self.database.reads.connect() as connection:
            [order] = await order_store.find_orders(connection, [self.order_id])
        assert isinstance(order, Order)
        return order


@pytest.fixture
async def batches(order_database: ServiceUrls) -> AsyncIterator[Batches]:
    url = order_database.runtime
    async with open_shop(1, database_url=url, redis_url="") as shop:
        order = await shop.order("ann", {await shop.product(5): 2})
    database = open_pools(url, application_name="batch test", pool_size=5)
    try:
        yield Batches(database, order.order_id)
    finally:
        await database.close()


def begun_saga(outcome: Any) -> Saga:
    """The saga that this very command has begun."""
    assert isinstance(outcome, SagaBegun)
    assert outcome.saga is not None
    return outcome.saga


def reason_of(outcome: Any) -> str:
    assert isinstance(outcome, Refusal)
    return outcome.reason


async def test_an_order_is_paid_and_its_cancellation_begun_in_one_batch(batches: Batches) -> None:
    saga = await batches.begin()
    closed, cancelling = await batches.decide(CloseSaga(saga), batches.cancel())
    assert closed.value.state is OrderState.PAID
    assert cancelling.order.state is OrderState.CANCELLING
    asked = (await batches.saga(begun_saga(cancelling).saga_id)).asked
    assert isinstance(asked, CancelInput)
    assert asked.pay_saga_id == saga.saga_id


async def test_an_attempt_ends_and_the_next_begins_in_one_batch(batches: Batches) -> None:
    saga = await batches.begin(batches.pay("p1"))
    saga.turn_back(DECLINED)
    closed, begun = await batches.decide(CloseSaga(saga), batches.pay("p2"))
    assert closed.value.state is OrderState.PENDING
    assert (await batches.saga(saga.saga_id)).state is SagaState.COMPENSATED
    assert (await batches.saga(begun_saga(begun).saga_id)).state is SagaState.RUNNING
    assert (await batches.order()).state is OrderState.PAYING


async def test_a_duplicate_in_the_same_batch_finds_the_saga_begun(batches: Batches) -> None:
    first, second = await batches.decide(batches.pay("p1"), batches.pay("p1"))
    assert (second.saga_id, second.saga) == (begun_saga(first).saga_id, None)
    assert second.order == first.order


# -- a batch that is decided again, since the reply to its COMMIT was lost -----------------------


@pytest.mark.parametrize("method", ["pay", "cancel"])
async def test_a_saga_begun_by_a_lost_commit_runs_here_until_taken_over(
    batches: Batches, method: str
) -> None:
    if method == "cancel":
        await batches.paid()
    command = getattr(batches, method)()
    first, again = await batches.begin(command), await batches.begin(command)
    assert (again.saga_id, again.epoch) == (first.saga_id, 1)
    assert again.time_left_s == (TIMES.pay_within_s if method == "pay" else None)
    taken = await batches.take_over()
    assert (taken.saga_id, taken.epoch) == (command.saga_id, 2)
    (later,) = await batches.decide(command)
    assert (later.saga_id, later.saga) == (command.saga_id, None)


async def test_another_cancellation_of_a_cancelling_order_begins_no_saga(batches: Batches) -> None:
    await batches.paid()
    await batches.begin(batches.cancel("x1"))
    other = batches.cancel("x2")
    (first,) = await batches.decide(other)
    assert isinstance(first, Result)
    assert (first.value.state, first.replayed) == (OrderState.CANCELLING, False)
    # Its repetition waits for the order, and knows no saga that could end here.
    (again,) = await batches.decide(other)
    assert isinstance(again, SagaBegun)
    assert (again.order, again.saga_id, again.saga) == (first.value, None, None)


# -- the end of a saga ---------------------------------------------------------------------------


async def test_a_saga_is_closed_once(batches: Batches) -> None:
    close = CloseSaga(await batches.begin())
    closed, lost = await batches.decide(close, close)
    assert isinstance(closed, Result)
    assert isinstance(lost, SagaLost)
    assert (await batches.order()).state is OrderState.PAID


async def test_an_order_is_not_moved_without_the_end_of_its_saga(batches: Batches) -> None:
    """The journal has a newer snapshot: another task has written it."""
    saga = await batches.begin()
    with pytest.raises(StaleRead):
        await batches.decide(CloseSaga(replace(saga, snapshot=saga.snapshot - 2)))
    assert (await batches.order()).state is OrderState.PAYING
    assert (await batches.saga(saga.saga_id)).state is SagaState.RUNNING


def resolve(batches: Batches, saga: Saga, request_id: str, *standing: Standing) -> ResolveSaga:
    return ResolveSaga(saga.saga_id, batches.order_id, "paid back", standing, request_id)


async def test_a_resolved_saga_is_lost_to_its_replica_in_the_same_batch(batches: Batches) -> None:
    saga = await batches.park()
    commands = [
        resolve(batches, saga, "o1"),
        resolve(batches, saga, "o2"),
        RetrySaga(saga.saga_id, batches.order_id, "o3"),
        CloseSaga(saga),
        NoteFailure(saga, "REFUND_REFUSED"),
        resolve(batches, saga, "o1"),
    ]
    resolved, refused, retried, closed, noted, again = await batches.decide(*commands)
    assert (resolved.value.state, resolved.value.epoch) == (SagaState.COMPENSATING, 2)
    assert reason_of(refused) == "SAGA_NOT_RETRYABLE"
    assert isinstance(retried, Result)
    assert isinstance(closed, SagaLost)
    assert isinstance(noted, SagaLost)
    assert again == replace(resolved, replayed=True)
    row = await batches.saga(saga.saga_id)
    assert (row.state, row.epoch, row.resolution_reason) == (COMPENSATING, 2, "paid back")
    assert (await batches.order()).state is OrderState.PAYING


async def test_a_refused_resolution_changes_nothing_for_the_rest_of_the_batch(
    batches: Batches,
) -> None:
    saga = await batches.park(done="redeem_coupon")
    good, wrong = (Standing(step, None, "x") for step in ("redeem_coupon", "deduct_balance"))
    refused, resolved = await batches.decide(
        resolve(batches, saga, "o1", good, wrong), resolve(batches, saga, "o2")
    )
    assert reason_of(refused) == "INVALID_FIELD"
    assert isinstance(resolved, Result)
    steps = (await batches.saga(saga.saga_id)).steps
    assert [step.state for step in steps[:2]] == [StepState.DONE, StepState.BEGUN]


async def test_without_capacity_only_a_repetition_has_a_result(batches: Batches) -> None:
    command = batches.pay()
    without_capacity = replace(command, saga_id=new_id(), has_capacity=False)
    (refused,) = await batches.decide(without_capacity)
    assert reason_of(refused) == "OVERLOADED"
    assert (await batches.order()).state is OrderState.PENDING
    saga = await batches.begin(command)
    (begun,) = await batches.decide(without_capacity)
    assert (begun.saga_id, begun.saga) == (saga.saga_id, None)
    await batches.decide(CloseSaga(saga))
    (replayed,) = await batches.decide(without_capacity)
    assert replayed.replayed
    assert replayed.value.state is OrderState.PAID


async def test_a_saga_that_releases_its_order_is_lost_to_its_replica(batches: Batches) -> None:
    """Its replica may repeat the close: the reply to the first COMMIT may be lost."""
    parked = await batches.park()
    await batches.decide(resolve(batches, parked, "o1"))
    saga = await batches.take_over()
    saga.step("confirm_payment").state, saga.step("confirm_payment").fenced = UNKNOWN, True
    (released,) = await batches.decide(CloseSaga(saga))
    assert released.value.state is OrderState.PENDING
    row = await batches.saga(saga.saga_id)
    assert (row.state, row.epoch) == (SagaState.RESOLVING, saga.epoch + 1)
    again, noted = await batches.decide(CloseSaga(saga), NoteFailure(saga, "REFUND_REFUSED"))
    assert isinstance(again, SagaLost)
    assert isinstance(noted, SagaLost)
    assert (await batches.order()).version == released.value.version
