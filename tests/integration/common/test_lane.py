"""What a lane does with a batch, on a real database and a decide function of the test's own."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

import pytest
import sqlalchemy as sa
from asyncpg.exceptions import UniqueViolationError
from structlog.testing import capture_logs

from common import deadlines
from common.batching import batch
from common.batching.lane import Lane
from common.batching.outcomes import Limits, Outcome, RefuseEarly, RowLocked, VersionConflict
from common.db import pool
from common.db.database import Database, open_pools
from common.db.errors import UNIQUE_VIOLATION, sqlstate
from common.db.statements import Connection
from common.errors import (
    Code,
    ConflictRetriesExhausted,
    DatabaseUnavailable,
    DeadlineTooShort,
    Internal,
    Overloaded,
    Refusal,
)
from common.locking.locks import BusyKey, Grant, Keys, Locks, NoLocks
from common.locking.strategy import RowStrategy, Strategies, Strategy
from common.metrics import REGISTRY
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import name_of, open_transaction
from tests.support.time_limits import LONG_S

INSERT = sa.text("INSERT INTO numbers SELECT unnest(CAST(:numbers AS bigint[]))")


@dataclass(frozen=True)
class Insert:
    number: int

    @property
    def key(self) -> str:
        return "busy" if self.number == 1 else "free"


@dataclass(frozen=True)
class Thing:
    name: str


BUSY = Thing("busy")


@dataclass(frozen=True)
class InsertUnder(Insert):
    """Needs a key for each of several things too."""

    things: tuple[Thing, ...] = ()


OF_INSERT = Strategy(
    rows=RowStrategy.INSERT, guards=("numbers_pkey",), why="", redis_key="{key}", rounds_max=6
)
STRATEGIES: Strategies = {
    Insert: OF_INSERT,
    InsertUnder: replace(OF_INSERT, redis_key_of_each=("things", "thing:{name}")),
}

Outcomes = Sequence[Outcome[int]] | None
Before = Callable[[Sequence[int], bool], Outcomes | Awaitable[Outcomes]]


class TooLarge(Refusal):
    """The number is too large."""

    code = Code.INVALID_ARGUMENT
    reason = "TOO_LARGE"


class Inserts:
    """Inserts the batch's numbers and returns them negated, unless ``before`` decides.

    ``batches`` has the numbers of each batch so far. Each one waits for ``go``.
    """

    def __init__(self, before: Before = lambda _numbers, _wait: None) -> None:
        self.before = before
        self.batches: list[list[int]] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(
        self, connection: Connection, commands: Sequence[Insert], *, wait_for_locks: bool
    ) -> Sequence[Outcome[int]]:
        numbers = [command.number for command in commands]
        self.batches.append(numbers)
        self.begun.set()
        await self.go.wait()
        outcomes = self.before(numbers, wait_for_locks)
        if isinstance(outcomes, Awaitable):
            outcomes = await outcomes
        if outcomes is not None:
            return outcomes
        await connection.execute(INSERT, {"numbers": numbers})
        return [-number for number in numbers]


def lane_of(
    database: Database,
    decide: Inserts,
    locks: Locks | None = None,
    limits: Limits | None = None,
    refuse_early: RefuseEarly[Insert] | None = None,
) -> Lane[Insert, int]:
    def translate(constraint: str, _command: Insert) -> Refusal | None:
        return TooLarge() if constraint == "numbers_small" else None

    locks = locks or NoLocks()
    return Lane(
        "test",
        database,
        decide,
        locks,
        STRATEGIES,
        translate=translate,
        limits=limits,
        refuse_early=refuse_early,
    )


async def stored(database: Database) -> list[int]:
    async with database.reads.connect() as connection:
        rows = await connection.execute(sa.text("SELECT number FROM numbers ORDER BY number"))
        return rows.scalars()


async def submit_all(lane: Lane[Insert, int], numbers: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(
        *(lane.submit(Insert(number)) for number in numbers), return_exceptions=True
    )


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


# -- Redis locks ---------------------------------------------------------------------------------


class BusyLocks(NoLocks):
    """Another replica has some keys; ``held`` has those that this one has.

    A command that cannot have all of its keys gets the others, as from several nodes of a cluster.
    """

    def __init__(self, *busy: str) -> None:
        self.busy = {key: BusyKey(key) for key in busy}
        self.asked: list[set[str]] = []
        self.held: set[str] = set()

    async def acquire(self, wanted: Collection[Keys]) -> Grant:
        self.asked.append({key for keys in wanted for key in keys})
        busy = {keys: key for keys in wanted for key in self.busy.values() if key.key in keys}
        acquired = frozenset(key for keys in wanted for key in keys if key not in self.busy)
        self.held |= acquired
        return Grant("token", acquired, busy)

    async def release(self, grant: Grant) -> None:
        self.held -= grant.acquired

    def free(self, key: str) -> None:
        """What the other replica does."""
        self.busy.pop(key).freed.set()

    def pass_on(self, key: str) -> None:
        """Another one has the key at once."""
        was, self.busy[key] = self.busy[key], BusyKey(key)
        was.freed.set()


async def test_a_busy_redis_lock_delays_a_command_and_refuses_none(database: Database) -> None:
    before = ends_of_waits()
    decide = Inserts()
    lane = lane_of(database, decide, locks=BusyLocks("busy"))
    assert await submit_all(lane, [1, 2, 3]) == [-1, -2, -3]
    assert decide.batches == [[2, 3], [1]], "decided without the lock, after the others"
    assert ends_of_waits() - before == {"limit": 1}


class ObservedLocks(NoLocks):
    """Every key is free; ``freed`` has what was committed when a lock was freed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.freed: list[list[int]] = []

    async def acquire(self, wanted: Collection[Keys]) -> Grant:
        return Grant("token", frozenset(key for keys in wanted for key in keys))

    async def release(self, grant: Grant) -> None:
        self.freed.append(await stored(self._database))


async def test_redis_locks_are_freed_after_the_commit(database: Database) -> None:
    """A lock that is freed earlier lets the next owner read rows that are about to change."""
    locks = ObservedLocks(database)
    lane = lane_of(database, Inserts(), locks=locks)
    assert await lane.submit(Insert(1)) == -1
    await lane.close()
    assert locks.freed == [[1]]


async def test_a_command_takes_all_of_its_keys_or_holds_none(database: Database) -> None:
    locks = BusyLocks("thing:busy")
    held: list[set[str]] = []

    def note_held(_numbers: Sequence[int], _wait: bool) -> None:
        held.append(set(locks.held))

    lane = lane_of(database, Inserts(note_held), locks=locks)
    first = lane.submit(InsertUnder(2, (Thing("x"),)))
    waits = lane.submit(InsertUnder(3, (Thing("y"), BUSY)))
    assert [*await asyncio.gather(first, waits)] == [-2, -3]
    await lane.close()
    assert held[0] == {"free", "thing:x"}, "what waits holds none of its keys"
    assert not locks.held


def ends_of_waits() -> Counter[str]:
    """How many waits for busy keys have ended so far, by how."""
    return Counter(
        {
            end: int(REGISTRY.get_sample_value("tally_lock_waits_total", {"end": end}) or 0)
            for end in ("released", "limit")
        }
    )


LONG: Limits = Limits(busy_key_s=LONG_S)
"""A command waits for its lock as long as a test may last."""


async def test_a_command_waits_for_the_release_of_its_lock(database: Database) -> None:
    """It asks Redis once, and again after the release; nothing else waits for it."""
    before = ends_of_waits()
    locks = BusyLocks("busy")
    decide = Inserts()
    lane = lane_of(database, decide, locks=locks, limits=LONG)
    waits = asyncio.ensure_future(lane.submit(Insert(1)))
    for number in range(2, 6):
        assert await lane.submit(Insert(number)) == -number
    assert [asked for asked in locks.asked if "busy" in asked] == [{"busy", "free"}]
    locks.free("busy")
    assert await waits == -1
    assert locks.asked[-1] == {"busy"}
    assert ends_of_waits() - before == {"released": 1}
    assert decide.batches == [[2], [3], [4], [5], [1]]


async def test_later_commands_of_a_busy_lock_wait_without_asking(database: Database) -> None:
    locks = BusyLocks("thing:busy")
    decide = Inserts()
    lane = lane_of(database, decide, locks=locks, limits=LONG)
    waits = []
    for number in range(2, 6):
        waits.append(asyncio.ensure_future(lane.submit(InsertUnder(1 - number, (BUSY,)))))
        assert await lane.submit(Insert(number)) == -number
    assert sum("thing:busy" in asked for asked in locks.asked) == 1
    locks.pass_on("thing:busy")
    for number in range(6, 9):
        assert await lane.submit(Insert(number)) == -number
    assert sum("thing:busy" in asked for asked in locks.asked) == 2
    locks.free("thing:busy")
    assert await asyncio.gather(*waits) == [1, 2, 3, 4]
    assert decide.batches[-1] == [-1, -2, -3, -4], "in order of arrival"


async def test_a_lane_that_is_closed_decides_what_waits_for_a_lock(database: Database) -> None:
    lane = lane_of(database, Inserts(), locks=BusyLocks("busy"))
    waits = asyncio.ensure_future(lane.submit(Insert(1)))
    await asyncio.sleep(0)
    await lane.close()
    assert waits.done()
    assert await waits == -1


async def test_what_is_refused_early_takes_no_lock_and_no_batch(database: Database) -> None:
    """The check is made each time that a command waits for its keys."""
    asked: list[list[int]] = []

    async def refuse_early(commands: Sequence[Insert]) -> dict[int, Refusal]:
        asked.append([one.number for one in commands])
        return {
            at: TooLarge()
            for at, one in enumerate(commands)
            if one.number > 9 or (one.number == 3 and len(asked) > 1)
        }

    decide = Inserts()
    lane = lane_of(database, decide, locks=BusyLocks("thing:busy"), refuse_early=refuse_early)
    calls = [Insert(10), Insert(2), InsertUnder(3, (BUSY,))]
    outcomes = await asyncio.gather(*map(lane.submit, calls), return_exceptions=True)
    assert [type(one) for one in outcomes] == [TooLarge, int, TooLarge]
    assert decide.batches == [[2]]
    assert asked[-1] == [3], "the one that waited for its keys"


async def test_redis_locks_of_an_unknown_commit_are_left_to_expire(database: Database) -> None:
    """The lost transaction may still be committed while another owner reads."""

    def lose_connection(_numbers: Sequence[int], _wait: bool) -> None:
        raise ConnectionResetError

    locks = ObservedLocks(database)
    lane = lane_of(database, Inserts(lose_connection), locks=locks)
    with pytest.raises(DatabaseUnavailable):
        await lane.submit(Insert(1))
    await lane.close()
    assert locks.freed == []
