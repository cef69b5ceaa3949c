"""What a lane does with a batch, on a real database and a decide function of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common import deadlines
from common.batching.lane import Lane
from common.batching.outcomes import Limits, RowLocked, VersionConflict
from common.db.engines import Database, open_engines
from common.errors import (
    Code,
    ConflictRetriesExhausted,
    DatabaseUnavailable,
    DeadlineTooShort,
    Internal,
    Overloaded,
    Refusal,
)
from common.locking.locks import Grant, NoLocks
from deploy.local.postgres import PostgresServer

TABLE = "CREATE TABLE numbers (number bigint PRIMARY KEY, CONSTRAINT small CHECK (number < 1000))"
INSERT = sa.text("INSERT INTO numbers SELECT unnest(CAST(:numbers AS bigint[]))")


class TooLarge(Refusal):
    """The number is too large."""

    code = Code.INVALID_ARGUMENT
    reason = "TOO_LARGE"


@dataclass
class Inserts:
    """Decides by inserting every number of the batch; ``before`` may intervene."""

    before: Callable[[Sequence[int], bool], Any] = lambda _numbers, _patient: None
    batches: list[list[int]] = field(default_factory=list)

    async def __call__(
        self, connection: AsyncConnection, commands: Sequence[int], *, wait_for_locks: bool
    ) -> Sequence[Any]:
        self.batches.append(list(commands))
        outcomes = self.before(commands, wait_for_locks)
        if asyncio.iscoroutine(outcomes):
            outcomes = await outcomes
        if outcomes is not None:
            return list(outcomes)
        await connection.execute(INSERT, {"numbers": list(commands)})
        return [-number for number in commands]


@pytest.fixture
def url(postgres_server: PostgresServer) -> Iterator[str]:
    postgres_server.provision("lanes")
    postgres_server.drop_database("lanes_test")
    urls = postgres_server.create_database("lanes_test", service="lanes")
    postgres_server.run_sql(
        TABLE + "; GRANT ALL ON numbers TO tally_lanes_runtime", database="lanes_test"
    )
    yield urls.runtime
    postgres_server.drop_database("lanes_test")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = open_engines(url, application_name="lanes test", pool_size=6)
    yield opened
    await opened.close()


async def stored(database: Database) -> list[int]:
    async with database.reads.connect() as connection:
        rows = await connection.scalars(sa.text("SELECT number FROM numbers ORDER BY number"))
        return list(rows)


async def all_of(lane: Lane[int], numbers: Sequence[int]) -> list[Any]:
    return await asyncio.gather(
        *(lane.submit(number) for number in numbers), return_exceptions=True
    )


async def test_commands_that_wait_together_are_decided_together(database: Database) -> None:
    decide = Inserts()
    lane: Lane[int] = Lane("test", database, decide, NoLocks(), limits=Limits(batch_max=64))
    assert await all_of(lane, range(200)) == [-number for number in range(200)]
    assert await stored(database) == list(range(200))
    assert max(len(batch) for batch in decide.batches) == 64
    assert len(decide.batches) < 10
    assert [number for batch in decide.batches for number in batch] == list(range(200))


async def test_one_bad_command_is_found_and_the_others_are_carried_out(database: Database) -> None:
    lane: Lane[int] = Lane(
        "test",
        database,
        Inserts(),
        NoLocks(),
        translate=lambda name, _: TooLarge() if name == "small" else None,
    )
    results = await all_of(lane, [*range(50), 5_000, *range(50, 100)])
    assert isinstance(results[50], TooLarge)
    assert [result for result in results if isinstance(result, Exception)] == [results[50]]
    assert await stored(database) == list(range(100))


async def test_a_defect_is_told_to_the_command_that_shows_it(database: Database) -> None:
    def fail(numbers: Sequence[int], _patient: bool) -> None:
        if 7 in numbers:
            raise ZeroDivisionError("seven")

    lane: Lane[int] = Lane("test", database, Inserts(fail), NoLocks())
    results = await all_of(lane, range(20))
    assert isinstance(results[7], ZeroDivisionError)
    assert await stored(database) == [number for number in range(20) if number != 7]


async def test_a_stray_cancellation_ends_a_batch_and_not_the_lane(database: Database) -> None:
    """A library that cancels what it should not must not leave callers waiting for ever."""

    def cancel(numbers: Sequence[int], _patient: bool) -> None:
        if 1 in numbers:
            raise asyncio.CancelledError

    lane: Lane[int] = Lane("test", database, Inserts(cancel), NoLocks())
    with pytest.raises(Internal):
        await lane.submit(1)
    assert await lane.submit(2) == -2


async def test_a_lost_connection_is_tried_again(
    database: Database, postgres_server: PostgresServer
) -> None:
    kills = 0

    def kill(_numbers: Sequence[int], _patient: bool) -> None:
        nonlocal kills
        kills += 1
        if kills == 1:
            postgres_server.run_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'lanes test%'"
            )

    lane: Lane[int] = Lane("test", database, Inserts(kill), NoLocks())
    assert await lane.submit(1) == -1
    assert kills == 2


async def test_without_a_database_callers_are_told_so() -> None:
    database = open_engines(
        "postgresql://nobody:x@127.0.0.1:1/none", application_name="t", pool_size=3
    )
    lane: Lane[int] = Lane("test", database, Inserts(), NoLocks())
    results = await all_of(lane, range(3))
    assert {type(result) for result in results} == {DatabaseUnavailable}
    await database.close()


async def test_a_held_row_is_waited_for_apart(database: Database) -> None:
    released = asyncio.Event()

    async def hold(numbers: Sequence[int], wait_for_locks: bool) -> Any:
        if wait_for_locks:
            await released.wait()
            return [-number for number in numbers]
        return [RowLocked("row") if number == 1 else -number for number in numbers]

    lane: Lane[int] = Lane("test", database, Inserts(hold), NoLocks())
    held = asyncio.ensure_future(lane.submit(1))
    assert await all_of(lane, range(2, 100)) == [-number for number in range(2, 100)]
    assert not held.done()
    released.set()
    assert await held == -1


async def test_rows_that_moved_go_round_and_at_last_wait_in_line(database: Database) -> None:
    seen: list[bool] = []

    def moved(numbers: Sequence[int], wait_for_locks: bool) -> Any:
        seen.append(wait_for_locks)
        return [-number if wait_for_locks else VersionConflict() for number in numbers]

    lane: Lane[int] = Lane("test", database, Inserts(moved), NoLocks(), limits=Limits(rounds_max=6))
    assert await lane.submit(1) == -1
    assert seen == [False] * 4 + [True]


async def test_a_row_that_is_never_free_is_given_up_on(database: Database) -> None:
    decide = Inserts(lambda numbers, _patient: [RowLocked("row") for _ in numbers])
    limits = Limits(rounds_max=0, apart_rounds_max=3)
    lane: Lane[int] = Lane("test", database, decide, NoLocks(), limits=limits)
    with pytest.raises(ConflictRetriesExhausted):
        await lane.submit(1)
    assert len(decide.batches) == 4


async def test_a_lane_has_a_depth_that_callers_who_left_count_towards(database: Database) -> None:
    go = asyncio.Event()

    async def wait(_numbers: Sequence[int], _patient: bool) -> None:
        await go.wait()

    lane: Lane[int] = Lane("test", database, Inserts(wait), NoLocks(), limits=Limits(depth_max=10))
    first = asyncio.ensure_future(lane.submit(0))
    await asyncio.sleep(0.01)
    for number in range(1, 10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lane.submit(number), 0.001)
    with pytest.raises(Overloaded):
        await lane.submit(10)
    go.set()
    assert await first == 0
    assert await lane.submit(11) == -11
    assert await stored(database) == [0, 11], "nobody waited for the others any more"


async def test_a_caller_without_time_is_refused_before_anything_is_begun(
    database: Database,
) -> None:
    decide = Inserts()
    lane: Lane[int] = Lane("test", database, decide, NoLocks())
    with deadlines.within(0.005), pytest.raises(DeadlineTooShort):
        await lane.submit(1)
    assert decide.batches == []


async def test_a_caller_that_leaves_does_not_undo_its_command(database: Database) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(_numbers: Sequence[int], _patient: bool) -> None:
        begun.set()
        await go.wait()

    lane: Lane[int] = Lane("test", database, Inserts(wait), NoLocks())
    call = asyncio.ensure_future(lane.submit(1))
    await begun.wait()
    call.cancel()
    go.set()
    await lane.close()
    assert await stored(database) == [1]
    with pytest.raises(Overloaded):
        await lane.submit(2)


class BusyLocks(NoLocks):
    """Somebody else holds the key 'busy', for ever."""

    async def acquire(self, keys: Any) -> Grant:
        return Grant("token", frozenset(keys) - {"busy"}, frozenset(keys) & {"busy"})


async def test_a_busy_lock_orders_the_crowd_and_refuses_nobody(database: Database) -> None:
    decide = Inserts()
    lane: Lane[int] = Lane(
        "test", database, decide, BusyLocks(), lock_key=lambda n: "busy" if n == 1 else "free"
    )
    results = await all_of(lane, [1, 2, 3])
    assert results == [-1, -2, -3]
    assert decide.batches[-1] == [1], "it went on without the lock, after the others"
