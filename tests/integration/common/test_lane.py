"""What a lane does with a batch, on a real database and a decide function of the test's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

import pytest
import sqlalchemy as sa
from asyncpg.exceptions import LockNotAvailableError, UniqueViolationError
from structlog.testing import capture_logs

from common import deadlines
from common.batching import batch
from common.batching.outcomes import Limits, RowLocked, VersionConflict
from common.db import pool
from common.db.database import Database, open_pools
from common.db.errors import UNIQUE_VIOLATION, sqlstate
from common.errors import (
    ConflictRetriesExhausted,
    DatabaseUnavailable,
    DeadlineTooShort,
    Internal,
    Overloaded,
)
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.common.lanes import (
    Insert,
    Inserts,
    Outcomes,
    TooLarge,
    lane_of,
    stored,
    submit_all,
)
from tests.support.databases import name_of, open_transaction

# -- batches -------------------------------------------------------------------------------------


async def test_commands_that_wait_together_are_decided_together(database: Database) -> None:
    decide = Inserts()
    lane = lane_of(database, decide, limits=Limits(batch_max=64))
    assert await submit_all(lane, range(200)) == [-number for number in range(200)]
    assert await stored(database) == list(range(200))
    assert max(len(batch) for batch in decide.batches) == 64
    assert len(decide.batches) < 10
    assert [number for batch in decide.batches for number in batch] == list(range(200))


def divide_by_zero_at_7(numbers: Sequence[int], _wait: bool) -> None:
    if 7 in numbers:
        raise ZeroDivisionError("seven")


@pytest.mark.parametrize(
    ("decide", "bad", "error"),
    [(Inserts(), 5_000, TooLarge), (Inserts(divide_by_zero_at_7), 7, ZeroDivisionError)],
    ids=["violated constraint", "defect"],
)
async def test_one_bad_command_fails_alone(
    database: Database, decide: Inserts, bad: int, error: type[Exception]
) -> None:
    others = [number for number in range(50) if number != bad]
    results = await submit_all(lane_of(database, decide), [*others[:25], bad, *others[25:]])
    assert isinstance(results.pop(25), error)
    assert results == [-number for number in others]
    assert await stored(database) == others


async def test_a_duplicate_in_a_halved_batch_is_decided_again(database: Database) -> None:
    """Its first request is held at first, and then committed: the next try finds its record."""

    def held_then_taken(numbers: Sequence[int], _wait: bool) -> None:
        if len(numbers) > 1:
            raise LockNotAvailableError("held")
        if numbers == [2] and decide.batches.count([2]) == 1:
            raise UniqueViolationError("taken")

    decide = Inserts(held_then_taken)
    assert await submit_all(lane_of(database, decide), [1, 2]) == [-1, -2]
    assert decide.batches == [[1, 2], [1], [2], [2]]


async def test_a_command_without_a_strategy_is_an_error(database: Database) -> None:
    class Renamed(Insert):
        pass

    decide = Inserts()
    lane = lane_of(database, decide)
    with pytest.raises(LookupError):
        await lane.submit(Renamed(1))
    assert decide.batches == []
    assert await lane.submit(Insert(1)) == -1


async def test_a_cancellation_inside_a_batch_does_not_end_the_lane(database: Database) -> None:
    """A library that cancels what it should not must not leave callers waiting for ever."""

    def cancel(numbers: Sequence[int], _wait: bool) -> None:
        if 1 in numbers:
            raise asyncio.CancelledError

    lane = lane_of(database, Inserts(cancel))
    with pytest.raises(Internal):
        await lane.submit(Insert(1))
    assert await lane.submit(Insert(2)) == -2


GATE = """
CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON numbers DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate();
"""
"""A transaction that has inserted a number waits in its COMMIT while another one has the lock."""
CLOSE_GATE = sa.text("SELECT pg_advisory_lock(1)")
OPEN_GATE = sa.text("SELECT pg_advisory_unlock(1)")
AT_THE_GATE = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


async def test_a_reply_comes_after_the_commit(
    database: Database, core_urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    postgres_server.run_sql(GATE, database=name_of(core_urls))
    lane = lane_of(database, Inserts())
    async with database.reads.connect() as gate:
        await gate.execute(CLOSE_GATE)
        reply = asyncio.ensure_future(lane.submit(Insert(1)))
        while not await gate.scalar(AT_THE_GATE):  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.01)
        assert not reply.done()
        await gate.execute(OPEN_GATE)
        assert await reply == -1
    assert await stored(database) == [1]


# -- the database away ---------------------------------------------------------------------------


async def test_a_batch_is_run_again_after_a_lost_connection(
    database: Database, postgres_server: PostgresServer
) -> None:
    def kill_at_first(_numbers: Sequence[int], _wait: bool) -> None:
        if len(decide.batches) == 1:
            postgres_server.run_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'core test%'"
            )

    decide = Inserts(kill_at_first)
    assert await lane_of(database, decide).submit(Insert(1)) == -1
    assert decide.batches == [[1], [1]]


async def test_without_a_database_every_caller_is_refused() -> None:
    database = open_pools(
        "postgresql://nobody:x@127.0.0.1:1/none", application_name="t", pool_size=3
    )
    results = await submit_all(lane_of(database, Inserts()), range(3))
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    await database.close()


# -- too slow, or too much to do -----------------------------------------------------------------

SLOW = """
CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON numbers FOR EACH ROW WHEN (NEW.number BETWEEN {} AND {})
    EXECUTE FUNCTION take_long();
"""


@pytest.fixture
async def limited(
    core_urls: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """As ``database``, with short limits for a statement and for the pool."""
    monkeypatch.setattr("common.db.database.STATEMENT_TIMEOUT_MS", 1_000)
    monkeypatch.setattr(pool, "WAIT_S", 0.05)
    opened = open_pools(core_urls.runtime, application_name="core test", pool_size=6)
    yield opened
    await opened.close()


async def test_one_slow_command_fails_alone(
    limited: Database, core_urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    postgres_server.run_sql(SLOW.format(7, 7), database=name_of(core_urls))
    decide = Inserts()
    results = await submit_all(lane_of(limited, decide), range(50))
    assert isinstance(results.pop(7), DatabaseUnavailable)
    others = [number for number in range(50) if number != 7]
    assert results == [-number for number in others]
    assert await stored(limited) == others
    assert len([batch for batch in decide.batches if 7 in batch]) <= 3


async def test_a_batch_that_is_slow_as_a_whole_is_given_up_in_time(
    limited: Database,
    core_urls: ServiceUrls,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the time to divide it is over, no part of it is tried any more."""
    monkeypatch.setattr(batch, "SLOW_S", 1.5)
    postgres_server.run_sql(SLOW.format(0, 50), database=name_of(core_urls))
    decide = Inserts()
    results = await submit_all(lane_of(limited, decide), range(50))
    assert {type(result) for result in results} == {DatabaseUnavailable}
    assert len(decide.batches) <= 3
    assert await stored(limited) == []


async def test_without_a_free_connection_commands_are_refused_as_overload(
    limited: Database,
) -> None:
    """The server is well: nothing says that the database is unavailable."""
    lane = lane_of(limited, Inserts())
    async with limited.lanes.connect():
        results = await submit_all(lane, range(3))
    assert [type(result) for result in results] == [Overloaded] * 3
    assert await submit_all(lane, range(3)) == [0, -1, -2]


# -- locked rows and version conflicts -----------------------------------------------------------


async def test_a_locked_row_delays_only_its_own_command(database: Database) -> None:
    released = asyncio.Event()

    async def blocked(numbers: Sequence[int], wait_for_locks: bool) -> Outcomes:
        if wait_for_locks:
            await released.wait()
            return [-number for number in numbers]
        return [RowLocked("row") if number == 1 else -number for number in numbers]

    lane = lane_of(database, Inserts(blocked))
    waiting = asyncio.ensure_future(lane.submit(Insert(1)))
    assert await submit_all(lane, range(2, 100)) == [-number for number in range(2, 100)]
    assert not waiting.done()
    released.set()
    assert await waiting == -1


async def test_commands_of_a_held_key_enter_no_further_batch(
    database: Database, core_urls: ServiceUrls
) -> None:
    """Each would delay all others of its batch by the whole lock_timeout, and its halves again."""
    entered = 0

    def count(numbers: Sequence[int], waits: bool) -> None:
        nonlocal entered
        entered += 1 in numbers and not waits

    lane = lane_of(database, Inserts(count))
    async with open_transaction(core_urls, "INSERT INTO numbers VALUES (1)"):
        held = asyncio.ensure_future(submit_all(lane, [1, 1, 1]))
        assert await submit_all(lane, range(2, 10)) == [-number for number in range(2, 10)]
        # The batches in which the first of them was found: the whole, and one of each two halves.
        assert 1 <= entered <= 5
        entered = 0
        later = []
        for number in range(10, 15):
            later.append(asyncio.ensure_future(submit_all(lane, [1])))
            assert await lane.submit(Insert(number)) == -number
        assert entered == 0
        assert not any(each.done() for each in (held, *later))
    # The other transaction has committed: this number exists.
    for outcome in [*await held, *itertools.chain(*await asyncio.gather(*later))]:
        assert isinstance(outcome, BaseException)
        assert sqlstate(outcome) == UNIQUE_VIOLATION
    with pytest.raises(UniqueViolationError):
        await lane.submit(Insert(1))
    assert entered > 0, "it is free again"


async def test_after_several_version_conflicts_the_lock_is_waited_for(database: Database) -> None:
    waited: list[bool] = []

    def conflict(numbers: Sequence[int], wait_for_locks: bool) -> Outcomes:
        waited.append(wait_for_locks)
        return [-number if wait_for_locks else VersionConflict() for number in numbers]

    assert await lane_of(database, Inserts(conflict)).submit(Insert(1)) == -1
    assert waited == [False] * 4 + [True]


async def test_a_row_that_stays_locked_is_refused_in_the_end(database: Database) -> None:
    decide = Inserts(lambda numbers, _wait: [RowLocked("row") for _ in numbers])
    lane = lane_of(database, decide, limits=Limits(blocked_rounds_max=3))
    with pytest.raises(ConflictRetriesExhausted):
        await lane.submit(Insert(1))
    assert len(decide.batches) == 4


async def test_a_held_row_is_one_log_line_when_its_command_is_refused(
    database: Database, core_urls: ServiceUrls
) -> None:
    lane = lane_of(database, Inserts(), limits=Limits(blocked_rounds_max=3))
    async with open_transaction(core_urls, "INSERT INTO numbers VALUES (1)"):
        with capture_logs() as lines, pytest.raises(ConflictRetriesExhausted):
            await lane.submit(Insert(1))
    given_up = [line for line in lines if line["event"] == "batch_given_up"]
    assert [(line["fault"], line["commands"]) for line in given_up] == [("held", 1)]


# -- callers -------------------------------------------------------------------------------------


async def test_callers_who_left_count_towards_the_depth(database: Database) -> None:
    decide = Inserts()
    decide.go.clear()
    lane = lane_of(database, decide, limits=Limits(depth_max=10))
    first = asyncio.ensure_future(lane.submit(Insert(0)))
    await decide.begun.wait()
    for number in range(1, 10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lane.submit(Insert(number)), 0.001)
    with pytest.raises(Overloaded):
        await lane.submit(Insert(10))
    decide.go.set()
    assert await first == 0
    assert await lane.submit(Insert(11)) == -11
    assert await stored(database) == [0, 11], "nobody waited for the others any more"


async def test_a_caller_without_time_is_refused_before_anything_begins(database: Database) -> None:
    decide = Inserts()
    with deadlines.within(0.005), pytest.raises(DeadlineTooShort):
        await lane_of(database, decide).submit(Insert(1))
    assert decide.batches == []


async def test_a_caller_that_leaves_does_not_undo_its_command(database: Database) -> None:
    decide = Inserts()
    decide.go.clear()
    lane = lane_of(database, decide)
    call = asyncio.ensure_future(lane.submit(Insert(1)))
    await decide.begun.wait()
    call.cancel()
    decide.go.set()
    await lane.close()
    assert await stored(database) == [1]
    with pytest.raises(Overloaded):
        await lane.submit(Insert(2))
