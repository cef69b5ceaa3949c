"""Several commands about one saga and its order in one batch of the order lane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.engines import Database, open_engines
from common.errors import Code, Refusal, RemoteRefusal
from common.ids import new_id
from common.locking.locks import NoLocks
from deploy.local.postgres_roles import ServiceUrls
from order_service.model.order import CancelOrder, Order, PayOrder
from order_service.model.order import State as OrderState
from order_service.model.saga_command import BeginPayment, CloseSaga, ResolveSaga, RetrySaga
from order_service.model.saga import CancelAsked, Saga, State
from order_service.saga.journal import SagaJournal, SagaLost
from order_service.store import saga_reads, sagas
from order_service.use_cases.order_lane import OrderLane, Written
from order_service.use_cases.order import Orders
from order_service.use_cases.saga_moves import SagaMoves, Told, Underway
from order_service.use_cases.watch import Watches
from tests.support.orders import shop

PAY_WITHIN_S = 20.0
DECLINED = RemoteRefusal(Code.FAILED_PRECONDITION, "PAYMENT_DECLINED", "no", {})


@dataclass
class Bench:
    """The lane itself, so that a test says what is in a batch."""

    database: Database
    lane: OrderLane
    moves: SagaMoves
    orders: Orders
    order_id: str

    async def batch(self, *commands: Any) -> list[Any]:
        async with self.database.begin() as connection:
            return await self.lane._decide(connection, commands, wait_for_locks=True)

    async def begun(self, request_id: str = "p1") -> Saga:
        (outcome,) = await self.batch(self.begin(request_id))
        assert isinstance(outcome, Underway)
        assert outcome.saga is not None
        return outcome.saga

    def begin(self, request_id: str) -> BeginPayment:
        return BeginPayment(PayOrder(self.order_id, "ann", None, None, None, request_id), new_id())

    def cancel(self, request_id: str) -> CancelOrder:
        return CancelOrder(self.order_id, "ann", "changed my mind", request_id)

    async def parked(self) -> Saga:
        saga = await self.begun()
        saga.park("UNAVAILABLE")
        async with self.database.begin() as connection:
            await sagas.write(connection, [sagas.Write.of(saga, 0.0)])
        return saga

    async def read(self, saga_id: str) -> Saga:
        async with self.database.reads.connect() as connection:
            saga = await saga_reads.read(connection, saga_id)
        assert saga is not None
        return saga

    async def order(self) -> Order:
        return await self.orders.get(self.order_id, "ann")


@pytest.fixture
async def bench(order_database: ServiceUrls) -> AsyncIterator[Bench]:
    url = order_database.runtime
    async with shop(1, database_url=url, redis_url="") as opened:
        order = await opened.order("ann", {await opened.product(5): 2})
    database = open_engines(url, application_name="batch test", pool_size=5)
    lane = OrderLane(database, NoLocks())
    moves = SagaMoves(lane, owner="one", lease_s=600.0, pay_within_s=PAY_WITHIN_S)
    orders = Orders(
        database,
        lane,
        Watches(database),
        expiry=timedelta(minutes=15),
        begin_cancel=moves.begin_cancel,
    )
    try:
        yield Bench(database, lane, moves, orders, order.order_id)
    finally:
        await lane.close()
        await database.close()


def reason_of(outcome: Any) -> str:
    assert isinstance(outcome, Refusal)
    return outcome.reason


async def test_an_order_paid_and_cancelled_in_one_batch(bench: Bench) -> None:
    saga = await bench.begun()
    command = bench.cancel("x1")
    closed, cancelled = await bench.batch(CloseSaga(saga.closed(State.COMPLETED)), command)
    assert isinstance(closed, Written)
    assert isinstance(cancelled, Written)
    assert cancelled.order.state is OrderState.CANCELLING
    begun = bench.moves.begun_by(command)
    assert begun is not None
    asked = (await bench.read(begun.saga_id)).asked
    assert isinstance(asked, CancelAsked)
    assert asked.pay_saga_id == saga.saga_id


async def test_an_attempt_that_ends_and_the_next_in_one_batch(bench: Bench) -> None:
    saga = await bench.begun("p1")
    saga.turn_back(DECLINED)
    closed, begun = await bench.batch(CloseSaga(saga.closed(State.COMPENSATED)), bench.begin("p2"))
    assert isinstance(closed, Written)
    assert isinstance(begun, Underway)
    assert begun.saga is not None
    assert (await bench.read(saga.saga_id)).state is State.COMPENSATED
    assert (await bench.read(begun.saga.saga_id)).state is State.RUNNING
    assert (await bench.order()).state is OrderState.PAYING


async def test_a_begin_decided_again_is_its_own_attempt_within_its_time(bench: Bench) -> None:
    begin = bench.begin("p1")
    await bench.batch(begin)
    # As after a commit whose answer was lost.
    (again,) = await bench.batch(begin)
    assert isinstance(again, Underway)
    assert again.saga is not None
    assert not again.replayed
    assert (again.saga.epoch, again.saga.time_left_s) == (1, PAY_WITHIN_S)


async def test_a_begin_decided_again_leaves_a_taken_over_attempt_to_its_replica(
    bench: Bench,
) -> None:
    begin = bench.begin("p1")
    await bench.batch(begin)
    async with bench.database.begin() as connection:
        await connection.execute(sa.text("UPDATE sagas SET lease_until = now() - interval '1 s'"))
    journal = SagaJournal(bench.database, owner="two", close=bench.lane.submit)
    (taken,) = await journal.take_over(lease_s=600.0, room=1)
    assert (taken.saga_id, taken.epoch) == (begin.saga_id, 2)
    (again,) = await bench.batch(begin)
    assert isinstance(again, Underway)
    assert again.replayed
    assert again.saga is None


@pytest.mark.parametrize("second", ["resolve", "retry"])
async def test_a_saga_resolved_is_over_for_the_rest_of_the_batch(bench: Bench, second: str) -> None:
    saga = await bench.parked()
    resolve = ResolveSaga(saga.saga_id, bench.order_id, "paid back", "o1")
    other = (
        ResolveSaga(saga.saga_id, bench.order_id, "again", "o2")
        if second == "resolve"
        else RetrySaga(saga.saga_id, bench.order_id, "o2")
    )
    told, refused, again = await bench.batch(resolve, other, resolve)
    assert isinstance(told, Told)
    assert told.saga.state is State.RESOLVED
    assert reason_of(refused) == "SAGA_NOT_RETRYABLE"
    assert isinstance(again, Told)
    assert again.replayed
    assert (await bench.read(saga.saga_id)).state is State.RESOLVED
    assert (await bench.order()).state is OrderState.PENDING


async def test_a_saga_set_going_is_not_resolved_in_the_same_batch(bench: Bench) -> None:
    saga = await bench.parked()
    told, refused = await bench.batch(
        RetrySaga(saga.saga_id, bench.order_id, "o1"),
        ResolveSaga(saga.saga_id, bench.order_id, "paid back", "o2"),
    )
    assert isinstance(told, Told)
    assert reason_of(refused) == "SAGA_NOT_RETRYABLE"
    assert (await bench.read(saga.saga_id)).state is State.RUNNING
    assert (await bench.order()).state is OrderState.PAYING


async def test_a_saga_closed_is_lost_to_who_closes_it_again(bench: Bench) -> None:
    saga = await bench.begun()
    close = CloseSaga(saga.closed(State.COMPLETED))
    closed, lost = await bench.batch(close, close)
    assert isinstance(closed, Written)
    assert isinstance(lost, SagaLost)
    assert (await bench.order()).state is OrderState.PAID


async def test_without_room_only_a_repetition_is_answered(bench: Bench) -> None:
    begin = bench.begin("p1")
    full = replace(begin, saga_id=new_id(), has_room=False)
    (refused,) = await bench.batch(full)
    assert reason_of(refused) == "OVERLOADED"
    assert (await bench.order()).state is OrderState.PENDING
    await bench.batch(begin)
    (joined,) = await bench.batch(full)
    assert isinstance(joined, Underway)
    saga = await bench.read(begin.saga_id)
    await bench.batch(CloseSaga(saga.closed(State.COMPLETED)))
    (replayed,) = await bench.batch(full)
    assert isinstance(replayed, Written)
    assert replayed.replayed
    assert replayed.order.state is OrderState.PAID
