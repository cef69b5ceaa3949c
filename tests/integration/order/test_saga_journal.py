"""The journal's rows in PostgreSQL: the fence, the lease and batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from asyncpg import IntegrityConstraintViolationError

from common.db.statements import Connection
from order_service.errors import SagaLost
from order_service.model.saga import Saga, SagaState, StepState
from order_service.model.saga_command import WriteSaga
from order_service.store import journal as journal_store
from order_service.store import saga as store
from order_service.tables import ONE_LIVE_PER_ORDER
from tests.support.saga_rows import LEASE_S, Sagas, begin, taken_over
from tests.support.statements import recorded_transactions

DONE, BEGUN, PENDING = StepState.DONE, StepState.BEGUN, StepState.PENDING


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

    async def write_unfenced(connection: Connection, writes: Any) -> None:
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
    with pytest.raises(IntegrityConstraintViolationError, match=ONE_LIVE_PER_ORDER):
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
    saga.wait("UNAVAILABLE")
    await sagas.one.write(saga, lease_s=0)
    assert (await sagas.read(saga)).next_attempt_time is not None
    await sagas.one.renew(saga, lease_s=LEASE_S)
    (taken,) = await taken_over(sagas.one)
    assert taken.attempts == 1
    assert (await sagas.read(saga)).next_attempt_time is None


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
        found = await store.read_sagas(connection, SagaState.RUNNING, None, before=newest, size=200)
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
