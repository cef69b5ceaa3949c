"""The journal's rows in PostgreSQL: the fence, the lease, the batch, and who takes over what."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.engines import Database, open_engines
from common.ids import new_id
from deploy.local.postgres_roles import ServiceUrls
from order_service.model.saga import PayAsked, Saga, State, StepState, records
from order_service.saga.plan import PAY_ORDER
from order_service.saga.journal import SagaJournal, SagaLost
from order_service.tables import ONE_LIVE_PER_ORDER, sagas
from order_service.store import saga_reads
from order_service.store import sagas as rows

LEASE_S = 60.0


@pytest.fixture
async def database(order_database: ServiceUrls) -> AsyncIterator[Database]:
    opened = open_engines(order_database.runtime, application_name="journal test", pool_size=9)
    try:
        yield opened
    finally:
        await opened.close()


Journals = Callable[[str], SagaJournal]


@pytest.fixture
async def journals(database: Database) -> AsyncIterator[Journals]:
    """Journals of replicas, by name."""
    opened: list[SagaJournal] = []

    async def never(saga: Saga) -> None:
        raise AssertionError(saga)

    def journal(owner: str) -> SagaJournal:
        opened.append(SagaJournal(database, owner=owner, close=never))
        return opened[-1]

    yield journal
    for each in opened:
        await each.lane.close()


def new_saga(order_id: str = "") -> Saga:
    request_id = new_id()
    asked = PayAsked(request_id, "00", "KRW", 1_000, None, None, None)
    return Saga(
        saga_id=new_id(),
        kind=PAY_ORDER.kind,
        plan_version=PAY_ORDER.version,
        order_id=order_id or new_id(),
        user_id="ann",
        asked=asked,
        steps=records(PAY_ORDER.names),
        time_left_s=20.0,
    )


async def begun(database: Database, *new: Saga, lease_s: float = LEASE_S) -> None:
    async with database.begin() as connection:
        await rows.add(connection, [rows.Begun(saga, "one", lease_s) for saga in new])


async def read(database: Database, saga: Saga) -> Saga:
    async with database.reads.connect() as connection:
        found = await saga_reads.read(connection, saga.saga_id)
    assert found is not None
    return found


async def taken_over(journal: SagaJournal, room: int = 1_000) -> list[Saga]:
    return list(await journal.take_over(lease_s=LEASE_S, room=room))


async def test_what_is_written_is_read_and_times_are_the_databases(
    database: Database, journals: Journals
) -> None:
    one, saga = journals("one"), new_saga()
    await begun(database, saga)
    before = await read(database, saga)
    saga.begin(saga.steps[1])
    await one.write(saga, lease_s=LEASE_S)
    after = await read(database, saga)
    step = after.steps[1]
    assert (step.state, step.attempts) == (StepState.BEGUN, 1)
    assert isinstance(step.begin_time, datetime)
    assert after.create_time is not None
    assert after.update_time is not None
    assert after.create_time < step.begin_time <= after.update_time
    assert (after.asked, after.facts, after.failure) == (saga.asked, saga.facts, None)
    assert before.epoch == after.epoch == 1
    # A time once written stays as it is.
    after.done(step, after.facts)
    await one.write(after, lease_s=LEASE_S)
    assert (await read(database, saga)).steps[1].begin_time == step.begin_time


async def test_a_stale_replica_writes_nothing(database: Database, journals: Journals) -> None:
    one, two, saga = journals("one"), journals("two"), new_saga()
    await begun(database, saga, lease_s=0)
    (taken,) = await taken_over(two)
    assert (taken.saga_id, taken.epoch) == (saga.saga_id, 2)
    saga.begin(saga.steps[0])
    with pytest.raises(SagaLost):
        await one.write(saga, lease_s=0)
    with pytest.raises(SagaLost):
        await one.renew(saga, lease_s=0)
    assert (await read(database, saga)).steps[0].state is StepState.PENDING
    # Stale and rightful in one batch: each gets its own answer.
    taken.begin(taken.steps[1])
    lost, written = await asyncio.gather(
        two.write(saga, lease_s=0), two.write(taken, lease_s=LEASE_S), return_exceptions=True
    )
    assert isinstance(lost, SagaLost)
    assert written is None
    states = [step.state for step in (await read(database, saga)).steps]
    assert states == [StepState.PENDING, StepState.BEGUN, StepState.PENDING, StepState.PENDING]


async def test_control_without_the_epoch_the_stale_write_lands(
    database: Database, journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = sa.text("UPDATE sagas SET steps = CAST(:steps AS jsonb) WHERE saga_id = :saga_id")

    async def anybody(_: Any, mine: Any, **_patient: Any) -> Any:
        return set(mine), set()

    async def unfenced(connection: AsyncConnection, writes: Any) -> Any:
        for each in writes:
            await connection.execute(naive, {"steps": each.steps, "saga_id": each.saga_id})
        return {(each.saga_id, each.epoch) for each in writes}

    monkeypatch.setattr(rows, "lock", anybody)
    monkeypatch.setattr(rows, "write", unfenced)
    one, two, saga = journals("one"), journals("two"), new_saga()
    await begun(database, saga, lease_s=0)
    (taken,) = await taken_over(two)
    taken.begin(taken.steps[1])
    await two.write(taken, lease_s=LEASE_S)
    saga.begin(saga.steps[0])
    await one.write(saga, lease_s=0)
    async with database.reads.connect() as connection:
        steps: Any = await connection.scalar(sa.select(sagas.c.steps))
    states = [step["state"] for step in steps]
    # What the rightful owner had journalled before its call is gone.
    assert states == ["BEGUN", "PENDING", "PENDING", "PENDING"]


async def test_a_saga_that_has_ended_is_nobodys(database: Database, journals: Journals) -> None:
    one, saga = journals("one"), new_saga()
    await begun(database, saga)
    async with database.begin() as connection:
        await rows.write(connection, [rows.Write.of(saga.closed(State.COMPLETED), 0)])
    with pytest.raises(SagaLost):
        await one.write(saga, lease_s=LEASE_S)
    assert (await read(database, saga)).state is State.COMPLETED
    assert await taken_over(one) == []


async def test_an_order_has_one_live_saga(database: Database) -> None:
    first = new_saga()
    await begun(database, first)
    with pytest.raises(IntegrityError, match=ONE_LIVE_PER_ORDER):
        await begun(database, new_saga(first.order_id))
    async with database.begin() as connection:
        await rows.write(connection, [rows.Write.of(first.closed(State.COMPLETED), 0)])
    await begun(database, new_saga(first.order_id))


async def test_a_lease_that_is_renewed_keeps_others_away(
    database: Database, journals: Journals
) -> None:
    one, two, saga = journals("one"), journals("two"), new_saga()
    await begun(database, saga, lease_s=0)
    await one.renew(saga, lease_s=LEASE_S)
    assert await taken_over(two) == []
    await one.renew(saga, lease_s=0)
    (taken,) = await taken_over(two)
    assert taken.epoch == 2
    assert taken.time_left_s is not None
    assert 0 < taken.time_left_s <= 20


async def test_a_heartbeat_that_comes_late_does_not_hold_up_what_was_let_go(
    database: Database, journals: Journals
) -> None:
    one, saga = journals("one"), new_saga()
    await begun(database, saga)
    saga.wait("UNAVAILABLE")
    await one.write(saga, lease_s=0)
    assert (await read(database, saga)).next_attempt_time is not None
    await one.renew(saga, lease_s=LEASE_S)
    (taken,) = await taken_over(one)
    assert taken.attempts == 1
    assert (await read(database, saga)).next_attempt_time is None


async def test_a_saga_that_waits_is_not_taken_before_its_time(
    database: Database, journals: Journals
) -> None:
    one, saga = journals("one"), new_saga()
    await begun(database, saga)
    saga.wait("UNAVAILABLE")
    await one.write(saga, lease_s=LEASE_S)
    assert await taken_over(one) == []
    saga.park("UNAVAILABLE")
    await one.write(saga, lease_s=0)
    assert await taken_over(one) == [], "it waits for a person"


async def test_a_plan_of_another_release_is_left_to_it(
    database: Database, journals: Journals
) -> None:
    one, known, later = journals("one"), new_saga(), new_saga()
    later.plan_version = PAY_ORDER.version + 1
    await begun(database, known, later, lease_s=0)
    assert [saga.saga_id for saga in await taken_over(one)] == [known.saga_id]
    left = await read(database, later)
    assert (left.epoch, left.attempts) == (1, 0)


@pytest.mark.parametrize(
    "damage", ["asked = asked - 'subtotal_minor'", "steps = '{}'", "facts = 'null'"]
)
async def test_a_row_that_cannot_be_read_stops_no_other(
    database: Database, journals: Journals, damage: str
) -> None:
    one, broken, sound = journals("one"), new_saga(), new_saga()
    await begun(database, broken, sound, lease_s=0)
    async with database.begin() as connection:
        await connection.execute(
            sa.text(f"UPDATE sagas SET {damage} WHERE saga_id = :id"),
            {"id": broken.saga_id},
        )
    assert [saga.saga_id for saga in await taken_over(one)] == [sound.saga_id]
    async with database.reads.connect() as connection:
        row = (
            await connection.execute(
                sa.select(sagas.c.state, sagas.c.attempts).where(sagas.c.saga_id == broken.saga_id)
            )
        ).one()
    assert tuple(row) == ("RUNNING", 0)


async def test_a_crowd_of_writes_is_a_few_statements(
    database: Database, journals: Journals
) -> None:
    one, many = journals("one"), [new_saga() for _ in range(100)]
    await begun(database, *many)
    statements: list[str] = []

    @sa.event.listens_for(database.lanes.sync_engine, "before_cursor_execute")
    def _count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for saga in many:
        saga.begin(saga.steps[0])
    await asyncio.gather(*(one.write(saga, lease_s=LEASE_S) for saga in many))
    updates = [statement for statement in statements if statement.startswith("UPDATE sagas")]
    assert 1 <= len(updates) <= 5
    async with database.reads.connect() as connection:
        found = await saga_reads.read_page(
            connection, State.RUNNING, before="f" * 8 + "-ffff" * 3 + "-" + "f" * 12, size=200
        )
    assert {saga.steps[0].state for saga in found} == {StepState.BEGUN}
    assert len(found) == 100


async def test_a_held_row_delays_only_its_own_write(database: Database, journals: Journals) -> None:
    one, held, free = journals("one"), new_saga(), new_saga()
    await begun(database, held, free)
    for saga in (held, free):
        saga.begin(saga.steps[0])
    async with database.begin() as connection:
        await saga_reads.lock_whole(connection, [held.saga_id], wait_for_locks=True)
        waiting = asyncio.ensure_future(one.write(held, lease_s=LEASE_S))
        for _ in range(5):
            await one.write(free, lease_s=LEASE_S)
        assert not waiting.done()
    await waiting
    assert (await read(database, held)).steps[0].state is StepState.BEGUN


async def test_of_many_replicas_one_takes_a_saga_over(
    database: Database, journals: Journals
) -> None:
    many = [new_saga() for _ in range(200)]
    await begun(database, *many, lease_s=0)
    replicas = [journals(f"replica-{number}") for number in range(8)]

    async def sweep(journal: SagaJournal) -> list[str]:
        taken: list[str] = []
        while found := await taken_over(journal, room=7):
            taken += [saga.saga_id for saga in found]
        return taken

    taken = await asyncio.gather(*map(sweep, replicas))
    counts = Counter(saga_id for each in taken for saga_id in each)
    assert counts == dict.fromkeys((saga.saga_id for saga in many), 1)


async def test_control_reading_first_and_writing_then_takes_one_over_twice(
    database: Database,
) -> None:
    saga = new_saga()
    await begun(database, saga, lease_s=0)
    both_read = asyncio.Barrier(2)

    async def naive() -> int:
        async with database.begin() as connection:
            due = await connection.scalars(
                sa.text("SELECT saga_id FROM sagas WHERE lease_until < now()")
            )
            found = [str(saga_id) for saga_id in due]
            await both_read.wait()
            for saga_id in found:
                await connection.execute(
                    sa.text("UPDATE sagas SET epoch = epoch + 1 WHERE saga_id = :id"),
                    {"id": saga_id},
                )
        return len(found)

    assert list(await asyncio.gather(naive(), naive())) == [1, 1]
    assert (await read(database, saga)).epoch == 3


async def test_a_copy_of_a_saga_is_written_as_it_was(
    database: Database, journals: Journals
) -> None:
    one, saga = journals("one"), new_saga()
    await begun(database, saga)
    snapshot = copy.deepcopy(saga)
    writing = asyncio.ensure_future(one.write(snapshot, lease_s=LEASE_S))
    await asyncio.sleep(0)
    snapshot.begin(snapshot.steps[0])
    await writing
    assert (await read(database, saga)).steps[0].state is StepState.PENDING
