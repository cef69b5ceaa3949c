"""The journal's rows in PostgreSQL: the fence, the lease, batches and takeovers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

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
from order_service.tables import ONE_LIVE_PER_ORDER
from order_service.tables import sagas as table
from tests.support.sagas import CANCEL_INPUT, pay_input, saga_of
from tests.support.statements import recorded_transactions

LEASE_S = 60.0
DONE, BEGUN, PENDING = StepState.DONE, StepState.BEGUN, StepState.PENDING


class Sagas:
    """The rows of sagas, and journals of replicas."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.journals: list[SagaJournal] = []
        self.one, self.two = self.journal("one"), self.journal("two")

    def journal(self, owner: str) -> SagaJournal:
        async def never(saga: Saga, _reason: str = "") -> Order:
            raise AssertionError(saga)

        self.journals.append(SagaJournal(self.database, owner=owner, close=never, note=never))
        return self.journals[-1]

    async def add(
        self,
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
        async with self.database.begin() as connection:
            await store.add(connection, [saga], owner="one", lease_s=lease_s)
        return saga

    async def read(self, saga: Saga) -> Saga:
        async with self.database.reads.connect() as connection:
            found = await store.read_saga(connection, saga.saga_id)
        assert found is not None
        return found

    async def close(self, saga: Saga) -> None:
        ended = saga.closed(SagaState.COMPLETED)
        ended.snapshot += 1
        closed = WriteSaga(ended, 0.0)
        async with self.database.begin() as connection:
            await journal_store.write(connection, [closed])


@pytest.fixture
async def sagas(order_database: ServiceUrls) -> AsyncIterator[Sagas]:
    opened = open_engines(order_database.runtime, application_name="journal test", pool_size=9)
    made = Sagas(opened)
    try:
        yield made
        for each in made.journals:
            await each.lane.close()
    finally:
        await opened.close()


async def taken_over(
    journal: SagaJournal,
    capacity: int = 1_000,
    *,
    uses_gateway: bool = True,
    retries: int | None = None,
    away: Sequence[str] = (),
) -> list[Saga]:
    taken = await journal.take_over(
        lease_s=LEASE_S,
        uses_gateway=uses_gateway,
        capacity=capacity,
        retries=capacity if retries is None else retries,
        away=away,
    )
    return list(taken.sagas)


def begin(saga: Saga, step: int) -> StepRecord:
    record = saga.steps[step]
    saga.begin(record, datetime.now(UTC))
    return record


async def test_a_written_saga_is_read_as_it_was(sagas: Sagas) -> None:
    saga = await sagas.add()
    assert await sagas.read(saga) == saga_as_stored(saga)
    step = begin(saga, 1)
    await sagas.one.write(saga, lease_s=LEASE_S)
    found = await sagas.read(saga)
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


async def test_a_write_has_the_saga_as_it_was_when_it_was_queued(sagas: Sagas) -> None:
    saga = await sagas.add()
    writing = asyncio.ensure_future(sagas.one.write(saga, lease_s=LEASE_S))
    await asyncio.sleep(0)
    begin(saga, 0)
    await writing
    assert (await sagas.read(saga)).steps[0].state is PENDING


# -- the fence -----------------------------------------------------------------------------------


async def test_a_stale_replica_writes_nothing(sagas: Sagas) -> None:
    saga = await sagas.add(lease_s=0)
    (taken,) = await taken_over(sagas.two)
    assert (taken.saga_id, taken.epoch) == (saga.saga_id, 2)
    begin(saga, 0)
    with pytest.raises(SagaLost):
        await sagas.one.write(saga, lease_s=0)
    with pytest.raises(SagaLost):
        await sagas.one.renew(saga, lease_s=0)
    assert (await sagas.read(saga)).steps[0].state is PENDING
    # The stale and the owner's write in one batch: each has its own outcome.
    begin(taken, 1)
    lost, written = await asyncio.gather(
        sagas.two.write(saga, lease_s=0),
        sagas.two.write(taken, lease_s=LEASE_S),
        return_exceptions=True,
    )
    assert isinstance(lost, SagaLost)
    assert written is None
    states = [step.state for step in (await sagas.read(saga)).steps]
    assert states == [PENDING, BEGUN, PENDING, PENDING]


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes need neither the epoch nor a higher number."""
    naive = sa.text("UPDATE sagas SET steps = CAST(:steps AS jsonb) WHERE saga_id = :saga_id")

    async def lock_any(_: Any, owned: Any, **_wait: Any) -> Any:
        return set(owned), frozenset()

    async def write_unfenced(connection: AsyncConnection, writes: Any) -> None:
        for write in writes:
            steps = store._STEPS.dump_json(write.saga.steps).decode()
            await connection.execute(naive, {"steps": steps, "saga_id": write.saga.saga_id})

    monkeypatch.setattr(journal_store, "lock_owned", lock_any)
    monkeypatch.setattr(journal_store, "write", write_unfenced)


@pytest.mark.usefixtures("unguarded")
async def test_control_without_the_epoch_the_stale_write_lands(sagas: Sagas) -> None:
    saga = await sagas.add(lease_s=0)
    (taken,) = await taken_over(sagas.two)
    begin(taken, 1)
    await sagas.two.write(taken, lease_s=LEASE_S)
    begin(saga, 0)
    await sagas.one.write(saga, lease_s=0)
    # What the owner had journalled before its call is gone.
    states = [step.state for step in (await sagas.read(saga)).steps]
    assert states == [BEGUN, PENDING, PENDING, PENDING]


async def test_an_ended_saga_is_neither_written_nor_taken_over(sagas: Sagas) -> None:
    saga = await sagas.add()
    await sagas.close(saga)
    with pytest.raises(SagaLost):
        await sagas.one.write(saga, lease_s=LEASE_S)
    assert (await sagas.read(saga)).state is SagaState.COMPLETED
    assert await taken_over(sagas.one) == []


async def test_an_order_has_one_live_saga(sagas: Sagas) -> None:
    first = await sagas.add()
    with pytest.raises(IntegrityError, match=ONE_LIVE_PER_ORDER):
        await sagas.add(order_id=first.order_id)
    await sagas.close(first)
    await sagas.add(order_id=first.order_id)


# -- leases and takeovers ------------------------------------------------------------------------


async def test_a_renewed_lease_keeps_other_replicas_away(sagas: Sagas) -> None:
    saga = await sagas.add(lease_s=0)
    await sagas.one.renew(saga, lease_s=LEASE_S)
    assert await taken_over(sagas.two) == []
    await sagas.one.renew(saga, lease_s=0)
    (taken,) = await taken_over(sagas.two)
    assert taken.epoch == 2
    assert taken.time_left_s is not None
    assert saga.time_left_s is not None
    assert 0 < taken.time_left_s <= saga.time_left_s


async def test_a_late_heartbeat_does_not_delay_a_saga_that_waits(sagas: Sagas) -> None:
    saga = await sagas.add()
    saga.wait("UNAVAILABLE", None)
    await sagas.one.write(saga, lease_s=0)
    assert (await sagas.read(saga)).next_attempt_time is not None
    await sagas.one.renew(saga, lease_s=LEASE_S)
    (taken,) = await taken_over(sagas.one)
    assert taken.attempts == 1
    assert (await sagas.read(saga)).next_attempt_time is None


async def test_a_waiting_saga_is_not_taken_over_before_its_time(sagas: Sagas) -> None:
    saga = await sagas.add()
    saga.wait("UNAVAILABLE", None)
    await sagas.one.write(saga, lease_s=LEASE_S)
    assert await taken_over(sagas.one) == []
    saga.flag()
    await sagas.one.write(saga, lease_s=0)
    (taken,) = await taken_over(sagas.one)
    assert taken.state is SagaState.NEEDS_ATTENTION, "a person should look, and it goes on"


async def waiting_for(sagas: Sagas, name: str | None, *, lease_s: float = 0) -> Saga:
    """A saga that waits in its row."""
    saga = await sagas.add()
    saga.postpone(begin(saga, 0), "UNAVAILABLE", datetime.now(UTC) + timedelta(hours=1))
    saga.wait("UNAVAILABLE", name)
    await sagas.one.write(saga, lease_s=lease_s)
    return saga


async def test_of_the_sagas_that_wait_for_a_service_that_is_away_one_goes_on(sagas: Sagas) -> None:
    away = [await waiting_for(sagas, "coupon") for _ in range(3)]
    other = await waiting_for(sagas, "balance")
    unknown = await waiting_for(sagas, None)
    taken = {saga.saga_id for saga in await taken_over(sagas.one, away=["coupon"])}
    probes = taken - {other.saga_id, unknown.saga_id}
    assert len(taken) == 3
    assert len(probes) == 1
    assert probes < {saga.saga_id for saga in away}


async def test_a_service_that_is_back_makes_its_sagas_due(sagas: Sagas) -> None:
    waiting = [await waiting_for(sagas, name, lease_s=LEASE_S) for name in ("coupon", "balance")]
    running = await sagas.add()
    assert await sagas.one.wake_waiting_for("coupon") == 1
    (taken,) = await taken_over(sagas.two)
    assert taken.saga_id == waiting[0].saga_id
    assert all(step.next_attempt_time is None for step in taken.steps)
    assert [step.name for step in taken.steps] == [step.name for step in waiting[0].steps]
    assert taken.attempts == 1, "it counts as a retry"
    assert (await sagas.read(running)).epoch == 1


async def test_sagas_that_wait_for_a_payment_are_read_in_order_and_woken(sagas: Sagas) -> None:
    names = ("gateway", "payment", "gateway")
    waiting = [await waiting_for(sagas, name, lease_s=LEASE_S) for name in names]
    await waiting_for(sagas, "balance", lease_s=LEASE_S)
    ids = sorted(saga.saga_id for saga in waiting)
    first = await sagas.one.read_waiting(after="", size=2)
    assert [saga.saga_id for saga in first] == ids[:2]
    (rest,) = await sagas.one.read_waiting(after=ids[1], size=2)
    assert rest.saga_id == ids[2]
    assert await sagas.one.wake(ids[:1]) == 1
    (taken,) = await taken_over(sagas.two, retries=0)
    assert (taken.saga_id, taken.attempts) == (ids[0], 0), "what is decided is no retry"
    assert await sagas.one.wake(ids[:1]) == 0, "a replica runs it"


async def write_late(sagas: Sagas, *, together: bool) -> StepState:
    """An older snapshot is written after a newer one, which had begun a step; the step then."""
    saga = await sagas.add()
    older, newer = saga.copy(), saga.copy()
    begin(newer, 0)
    older.snapshot, newer.snapshot = 1, 2
    writes = [WriteSaga(one, LEASE_S) for one in (newer, older)]
    for batch in [writes] if together else [[write] for write in writes]:
        async with sagas.database.begin() as connection:
            await sagas.one._decide(connection, batch, wait_for_locks=True)
    return (await sagas.read(saga)).steps[0].state


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two"])
async def test_an_older_snapshot_replaces_no_newer_one(sagas: Sagas, together: bool) -> None:
    assert await write_late(sagas, together=together) is BEGUN


@pytest.mark.usefixtures("unguarded")
async def test_control_without_its_number_an_older_snapshot_erases_a_begun_step(
    sagas: Sagas,
) -> None:
    assert await write_late(sagas, together=False) is PENDING


async def test_a_saga_of_an_unknown_plan_is_not_taken_over(sagas: Sagas) -> None:
    known = await sagas.add(lease_s=0)
    later = await sagas.add(lease_s=0, plan_version=PAY_ORDER.version + 1)
    assert [saga.saga_id for saga in await taken_over(sagas.one)] == [known.saga_id]
    left = await sagas.read(later)
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
async def test_a_takeover_is_of_one_bulkhead(sagas: Sagas, plan: Plan, asked: SagaInput) -> None:
    saga = await sagas.add(plan, asked, lease_s=0)
    assert await taken_over(sagas.one, uses_gateway=not asked.uses_gateway) == []
    assert [
        each.saga_id for each in await taken_over(sagas.one, uses_gateway=asked.uses_gateway)
    ] == [saga.saga_id]


async def test_sagas_that_failed_before_come_last_and_are_limited(sagas: Sagas) -> None:
    failed = [await sagas.add(lease_s=0) for _ in range(3)]
    for saga in failed:
        saga.wait("UNAVAILABLE", None)
        await sagas.one.write(saga, lease_s=0)
    left = await sagas.add(lease_s=0)
    assert [saga.saga_id for saga in await taken_over(sagas.one, capacity=1, retries=1)] == [
        left.saga_id
    ]
    again = {saga.saga_id for _ in range(2) for saga in await taken_over(sagas.one, retries=1)}
    assert len(again) == 2
    assert again < {saga.saga_id for saga in failed}
    assert await taken_over(sagas.one, retries=-1) == []


@pytest.mark.parametrize(
    "damage",
    [
        "asked = asked - 'subtotal_minor'",
        """asked = '{"gateway_minor": "x"}'""",
        "asked = '[]'",
        "steps = '{}'",
        "facts = 'null'",
    ],
)
async def test_an_unreadable_row_stops_no_other(sagas: Sagas, damage: str) -> None:
    broken, sound = await sagas.add(lease_s=0), await sagas.add(lease_s=0)
    this_row = table.c.saga_id == broken.saga_id
    async with sagas.database.begin() as connection:
        await connection.execute(
            sa.text(f"UPDATE sagas SET {damage} WHERE saga_id = :id"), {"id": broken.saga_id}
        )
    # The log event is not rendered: on a slow machine that outlasts the transaction's time limit.
    with capture_logs():
        assert [saga.saga_id for saga in await taken_over(sagas.one)] == [sound.saga_id]
    async with sagas.database.reads.connect() as connection:
        found = await connection.execute(sa.select(table.c.state, table.c.attempts).where(this_row))
    assert tuple(found.one()) == ("RUNNING", 0)


async def test_of_many_replicas_one_takes_a_saga_over(sagas: Sagas) -> None:
    ids = [(await sagas.add(lease_s=0)).saga_id for _ in range(200)]

    async def sweep(journal: SagaJournal) -> list[str]:
        taken: list[str] = []
        while found := await taken_over(journal, capacity=7):
            taken += [saga.saga_id for saga in found]
        return taken

    taken = await asyncio.gather(
        *(sweep(sagas.journal(f"replica-{number}")) for number in range(8))
    )
    assert Counter(saga_id for each in taken for saga_id in each) == dict.fromkeys(ids, 1)


async def test_control_a_read_before_the_write_takes_one_over_twice(sagas: Sagas) -> None:
    saga = await sagas.add(lease_s=0)
    both_read = asyncio.Barrier(2)
    due = sa.text("SELECT saga_id FROM sagas WHERE lease_until < now()")
    take = sa.text("UPDATE sagas SET epoch = epoch + 1 WHERE saga_id = :id")

    async def naive() -> int:
        async with sagas.database.begin() as connection:
            found = (await connection.scalars(due)).all()
            await both_read.wait()
            for saga_id in found:
                await connection.execute(take, {"id": saga_id})
        return len(found)

    assert list(await asyncio.gather(naive(), naive())) == [1, 1]
    assert (await sagas.read(saga)).epoch == 3


# -- batches -------------------------------------------------------------------------------------


async def test_a_hundred_writes_at_once_are_a_few_statements(sagas: Sagas) -> None:
    many = [await sagas.add() for _ in range(100)]
    for saga in many:
        begin(saga, 0)
    with recorded_transactions() as transactions:
        await asyncio.gather(*(sagas.one.write(saga, lease_s=LEASE_S) for saga in many))
    updates = [text for each in transactions for text in each if text.startswith("UPDATE sagas")]
    assert 1 <= len(updates) <= 5
    newest = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    async with sagas.database.reads.connect() as connection:
        found = await store.read_sagas(connection, SagaState.RUNNING, before=newest, size=200)
    assert [saga.steps[0].state for saga in found] == [BEGUN] * 100


async def test_a_locked_row_delays_only_its_own_write(sagas: Sagas) -> None:
    blocked, free = await sagas.add(), await sagas.add()
    begin(blocked, 0)
    async with sagas.database.begin() as connection:
        await store.lock(connection, [blocked.saga_id], wait_for_locks=True)
        waiting = asyncio.ensure_future(sagas.one.write(blocked, lease_s=LEASE_S))
        for _ in range(5):
            await sagas.one.write(free, lease_s=LEASE_S)
        assert not waiting.done()
    await waiting
    assert (await sagas.read(blocked)).steps[0].state is BEGUN
