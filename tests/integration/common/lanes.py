"""A lane of the test's own: its commands insert numbers into a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from common.batching.lane import Lane
from common.batching.outcomes import Limits, Outcome, RefuseEarly
from common.db.database import Database
from common.db.statements import Connection
from common.errors import Code, Refusal
from common.locking.locks import BusyKey, Grant, Keys, Locks, NoLocks
from common.locking.strategy import RowStrategy, Strategies, Strategy

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
