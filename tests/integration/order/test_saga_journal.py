"""The journal's rows in PostgreSQL: the fence, the lease, batches and takeovers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.engines import Database, open_engines
from common.ids import new_id
from deploy.local.postgres_roles import ServiceUrls
from order_service.errors import SagaLost
from order_service.model.order import Order
from order_service.model.saga import Saga, SagaState, StepRecord, StepState
from order_service.model.saga_command import WriteSaga
from order_service.model.saga_input import SagaInput
from order_service.saga.journal import SagaJournal
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Plan
from order_service.store import journal as journal_store
from order_service.store import saga as store
from order_service.tables import ONE_LIVE_PER_ORDER, sagas
from tests.support.sagas import CANCEL_INPUT, pay_input, saga_of

LEASE_S = 60.0
DONE, BEGUN, PENDING = StepState.DONE, StepState.BEGUN, StepState.PENDING
Journals = Callable[[str], SagaJournal]


@pytest.fixture
async def database(order_database: ServiceUrls) -> AsyncIterator[Database]:
    opened = open_engines(order_database.runtime, application_name="journal test", pool_size=9)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def journals(database: Database) -> AsyncIterator[Journals]:
    """The journals of replicas, by name."""
    opened: list[SagaJournal] = []

    async def never(saga: Saga) -> Order:
        raise AssertionError(saga)

    def journal(owner: str) -> SagaJournal:
        opened.append(SagaJournal(database, owner=owner, end=never))
        return opened[-1]

    yield journal
    for each in opened:
        await each.lane.close()


@pytest.fixture
def one(journals: Journals) -> SagaJournal:
    return journals("one")


@pytest.fixture
def two(journals: Journals) -> SagaJournal:
    return journals("two")


async def added(
    database: Database,
    plan: Plan = PAY_ORDER,
    asked: SagaInput | None = None,
    *,
    lease_s: float = LEASE_S,
    **fields: Any,
) -> Saga:
    """A new saga of replica one, in its row."""
    now = datetime.now(UTC)
    own = {"saga_id": new_id(), "order_id": new_id(), "create_time": now, "update_time": now}
    asked = replace(asked or pay_input(), request_id=new_id())
    saga = saga_of(plan, asked, **{**own, **fields})
    async with database.begin() as connection:
        await store.add(connection, [saga], owner="one", lease_s=lease_s)
    return saga


async def read(database: Database, saga: Saga) -> Saga:
    async with database.reads.connect() as connection:
        found = await store.read_saga(connection, saga.saga_id)
    assert found is not None
    return found


async def taken_over(
    journal: SagaJournal,
    capacity: int = 1_000,
    *,
    uses_gateway: bool = True,
    retries: int | None = None,
) -> list[Saga]:
    taken = await journal.take_over(
        lease_s=LEASE_S,
        uses_gateway=uses_gateway,
        capacity=capacity,
        retries=capacity if retries is None else retries,
    )
    return list(taken.sagas)


async def close(database: Database, saga: Saga) -> None:
    async with database.begin() as connection:
        await journal_store.write(connection, [WriteSaga(saga.closed(SagaState.COMPLETED), 0.0)])


def begin(saga: Saga, step: int) -> StepRecord:
    record = saga.steps[step]
    saga.begin(record, datetime.now(UTC))
    return record


async def test_a_written_saga_is_read_as_it_was(database: Database, one: SagaJournal) -> None:
    saga = await added(database)
    assert await read(database, saga) == saga_as_stored(saga)
    step = begin(saga, 1)
    await one.write(saga, lease_s=LEASE_S)
    found = await read(database, saga)
    assert found.steps == saga.steps
    assert (found.asked, found.facts, found.failure) == (saga.asked, saga.facts, None)
    assert (found.epoch, found.create_time) == (1, saga.create_time)
    assert step.begin_time is not None
    assert found.update_time is not None
    assert found.update_time >= step.begin_time


def saga_as_stored(saga: Saga) -> Saga:
    """How long it has left is read only when a saga is taken over."""
    stored = saga.copy()
    stored.time_left_s = None
    return stored


async def test_a_write_has_the_saga_as_it_was_when_it_was_queued(
    database: Database, one: SagaJournal
) -> None:
    saga = await added(database)
    writing = asyncio.ensure_future(one.write(saga, lease_s=LEASE_S))
    await asyncio.sleep(0)
    begin(saga, 0)
    await writing
    assert (await read(database, saga)).steps[0].state is PENDING


# -- the fence -----------------------------------------------------------------------------------


async def test_a_stale_replica_writes_nothing(
    database: Database, one: SagaJournal, two: SagaJournal
) -> None:
    saga = await added(database, lease_s=0)
    (taken,) = await taken_over(two)
    assert (taken.saga_id, taken.epoch) == (saga.saga_id, 2)
    begin(saga, 0)
    with pytest.raises(SagaLost):
        await one.write(saga, lease_s=0)
    with pytest.raises(SagaLost):
        await one.renew(saga, lease_s=0)
    assert (await read(database, saga)).steps[0].state is PENDING
    # The stale and the owner's write in one batch: each has its own outcome.
    begin(taken, 1)
    lost, written = await asyncio.gather(
        two.write(saga, lease_s=0), two.write(taken, lease_s=LEASE_S), return_exceptions=True
    )
    assert isinstance(lost, SagaLost)
    assert written is None
    states = [step.state for step in (await read(database, saga)).steps]
    assert states == [PENDING, BEGUN, PENDING, PENDING]


async def test_control_without_the_epoch_the_stale_write_lands(
    database: Database, one: SagaJournal, two: SagaJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = sa.text("UPDATE sagas SET steps = CAST(:steps AS jsonb) WHERE saga_id = :saga_id")

    async def lock_any(_: Any, owned: Any, **_wait: Any) -> Any:
        return set(owned), frozenset()

    async def write_unfenced(connection: AsyncConnection, writes: Any) -> Any:
        for write in writes:
            steps = store._STEPS.dump_json(write.saga.steps).decode()
            await connection.execute(naive, {"steps": steps, "saga_id": write.saga.saga_id})
        return {write.owned for write in writes}

    monkeypatch.setattr(journal_store, "lock_owned", lock_any)
    monkeypatch.setattr(journal_store, "write", write_unfenced)
    saga = await added(database, lease_s=0)
    (taken,) = await taken_over(two)
    begin(taken, 1)
    await two.write(taken, lease_s=LEASE_S)
    begin(saga, 0)
    await one.write(saga, lease_s=0)
    # What the owner had journalled before its call is gone.
    states = [step.state for step in (await read(database, saga)).steps]
    assert states == [BEGUN, PENDING, PENDING, PENDING]


async def test_an_ended_saga_is_written_and_taken_over_by_nobody(
    database: Database, one: SagaJournal
) -> None:
    saga = await added(database)
    await close(database, saga)
    with pytest.raises(SagaLost):
        await one.write(saga, lease_s=LEASE_S)
    assert (await read(database, saga)).state is SagaState.COMPLETED
    assert await taken_over(one) == []


async def test_an_order_has_one_live_saga(database: Database) -> None:
    first = await added(database)
    with pytest.raises(IntegrityError, match=ONE_LIVE_PER_ORDER):
        await added(database, order_id=first.order_id)
    await close(database, first)
    await added(database, order_id=first.order_id)


# -- leases and takeovers ------------------------------------------------------------------------


async def test_a_renewed_lease_keeps_other_replicas_away(
    database: Database, one: SagaJournal, two: SagaJournal
) -> None:
    saga = await added(database, lease_s=0)
    await one.renew(saga, lease_s=LEASE_S)
    assert await taken_over(two) == []
    await one.renew(saga, lease_s=0)
    (taken,) = await taken_over(two)
    assert taken.epoch == 2
    assert taken.time_left_s is not None
    assert saga.time_left_s is not None
    assert 0 < taken.time_left_s <= saga.time_left_s


async def test_a_late_heartbeat_does_not_delay_a_saga_that_waits(
    database: Database, one: SagaJournal
) -> None:
    saga = await added(database)
    saga.wait("UNAVAILABLE")
    await one.write(saga, lease_s=0)
    assert (await read(database, saga)).next_attempt_time is not None
    await one.renew(saga, lease_s=LEASE_S)
    (taken,) = await taken_over(one)
    assert taken.attempts == 1
    assert (await read(database, saga)).next_attempt_time is None


async def test_a_waiting_saga_is_not_taken_over_before_its_time(
    database: Database, one: SagaJournal
) -> None:
    saga = await added(database)
    saga.wait("UNAVAILABLE")
    await one.write(saga, lease_s=LEASE_S)
    assert await taken_over(one) == []
    saga.park("UNAVAILABLE")
    await one.write(saga, lease_s=0)
    assert await taken_over(one) == [], "a parked saga waits for a person"


async def test_a_saga_of_an_unknown_plan_is_not_taken_over(
    database: Database, one: SagaJournal
) -> None:
    known = await added(database, lease_s=0)
    later = await added(database, lease_s=0, plan_version=PAY_ORDER.version + 1)
    assert [saga.saga_id for saga in await taken_over(one)] == [known.saga_id]
    left = await read(database, later)
    assert (left.epoch, left.attempts) == (1, 0)


@pytest.mark.parametrize(
    ("plan", "asked"),
    [
        (PAY_ORDER, pay_input()),
        (PAY_ORDER, pay_input(payment_key=None, balance_minor=None)),
        (CANCEL_ORDER, CANCEL_INPUT),
        (CANCEL_ORDER, replace(CANCEL_INPUT, gateway_minor=0)),
    ],
    ids=["pay by gateway", "pay", "cancel at gateway", "cancel"],
)
async def test_a_takeover_is_of_one_room(
    database: Database, one: SagaJournal, plan: Plan, asked: SagaInput
) -> None:
    saga = await added(database, plan, asked, lease_s=0)
    room = asked.uses_gateway
    assert await taken_over(one, uses_gateway=not room) == []
    assert [each.saga_id for each in await taken_over(one, uses_gateway=room)] == [saga.saga_id]


async def test_sagas_that_failed_before_come_last_and_are_limited(
    database: Database, one: SagaJournal
) -> None:
    failed = [await added(database, lease_s=0) for _ in range(3)]
    for saga in failed:
        saga.wait("UNAVAILABLE")
        await one.write(saga, lease_s=0)
    left = await added(database, lease_s=0)
    assert [saga.saga_id for saga in await taken_over(one, capacity=1, retries=1)] == [left.saga_id]
    again = {saga.saga_id for _ in range(2) for saga in await taken_over(one, retries=1)}
    assert len(again) == 2
    assert again < {saga.saga_id for saga in failed}
    assert await taken_over(one, retries=-1) == []


@pytest.mark.parametrize(
    "damage", ["asked = asked - 'subtotal_minor'", "steps = '{}'", "facts = 'null'"]
)
async def test_an_unreadable_row_stops_no_other(
    database: Database, one: SagaJournal, damage: str
) -> None:
    broken, sound = await added(database, lease_s=0), await added(database, lease_s=0)
    this_row = sagas.c.saga_id == broken.saga_id
    async with database.begin() as connection:
        await connection.execute(
            sa.text(f"UPDATE sagas SET {damage} WHERE saga_id = :id"), {"id": broken.saga_id}
        )
    assert [saga.saga_id for saga in await taken_over(one)] == [sound.saga_id]
    async with database.reads.connect() as connection:
        found = await connection.execute(sa.select(sagas.c.state, sagas.c.attempts).where(this_row))
    assert tuple(found.one()) == ("RUNNING", 0)


async def test_of_many_replicas_one_takes_a_saga_over(
    database: Database, journals: Journals
) -> None:
    ids = [(await added(database, lease_s=0)).saga_id for _ in range(200)]

    async def sweep(journal: SagaJournal) -> list[str]:
        taken: list[str] = []
        while found := await taken_over(journal, capacity=7):
            taken += [saga.saga_id for saga in found]
        return taken

    taken = await asyncio.gather(*(sweep(journals(f"replica-{number}")) for number in range(8)))
    assert Counter(saga_id for each in taken for saga_id in each) == dict.fromkeys(ids, 1)


async def test_control_reading_first_and_writing_then_takes_one_over_twice(
    database: Database,
) -> None:
    saga = await added(database, lease_s=0)
    both_read = asyncio.Barrier(2)
    due = sa.text("SELECT saga_id FROM sagas WHERE lease_until < now()")
    take = sa.text("UPDATE sagas SET epoch = epoch + 1 WHERE saga_id = :id")

    async def naive() -> int:
        async with database.begin() as connection:
            found = (await connection.scalars(due)).all()
            await both_read.wait()
            for saga_id in found:
                await connection.execute(take, {"id": saga_id})
        return len(found)

    assert list(await asyncio.gather(naive(), naive())) == [1, 1]
    assert (await read(database, saga)).epoch == 3


# -- batches -------------------------------------------------------------------------------------


async def test_a_hundred_writes_at_once_are_a_few_statements(
    database: Database, one: SagaJournal
) -> None:
    many = [await added(database) for _ in range(100)]
    statements: list[str] = []

    @sa.event.listens_for(database.lanes.sync_engine, "before_cursor_execute")
    def _record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for saga in many:
        begin(saga, 0)
    await asyncio.gather(*(one.write(saga, lease_s=LEASE_S) for saga in many))
    updates = [statement for statement in statements if statement.startswith("UPDATE sagas")]
    assert 1 <= len(updates) <= 5
    newest = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    async with database.reads.connect() as connection:
        found = await store.read_sagas(connection, SagaState.RUNNING, before=newest, size=200)
    assert [saga.steps[0].state for saga in found] == [BEGUN] * 100


async def test_a_locked_row_delays_only_its_own_write(database: Database, one: SagaJournal) -> None:
    blocked, free = await added(database), await added(database)
    begin(blocked, 0)
    async with database.begin() as connection:
        await store.lock(connection, [blocked.saga_id], wait_for_locks=True)
        waiting = asyncio.ensure_future(one.write(blocked, lease_s=LEASE_S))
        for _ in range(5):
            await one.write(free, lease_s=LEASE_S)
        assert not waiting.done()
    await waiting
    assert (await read(database, blocked)).steps[0].state is BEGUN
