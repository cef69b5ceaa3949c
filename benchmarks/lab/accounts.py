"""Changes of account balances: by many at once on one account, or spread over many accounts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg
import sqlalchemy as sa

from benchmarks.lab.experiment import Answers, Books, LaneOf, Run, Strategy
from benchmarks.lab.notes import CONFLICTS
from benchmarks.lab.size import Request, Size
from benchmarks.lab.tools import TOUCHES, Conflict, Refused, Tools
from common.backoff import Backoff
from common.batching.outcomes import Outcome, RowLocked
from common.db.statements import Connection
from common.locking.key_lease import Hold
from common.locking.key_line import Waiting

SCHEMA: Final = """
CREATE TABLE accounts (
    id      bigint PRIMARY KEY,
    balance bigint NOT NULL,
    version bigint NOT NULL DEFAULT 0,
    touched bigint NOT NULL DEFAULT 0
);
"""
READ: Final = "SELECT balance, version FROM accounts WHERE id = $1"
WRITE: Final = "UPDATE accounts SET balance = $2, version = version + 1 WHERE id = $1"
COMPARE_AND_WRITE: Final = f"{WRITE} AND version = $3"
ADD: Final = (
    "UPDATE accounts SET balance = balance + $2, version = version + 1"
    " WHERE id = $1 AND balance + $2 >= 0"
)
WARM_UP: Final = (
    "SELECT balance FROM accounts WHERE id = -1 FOR UPDATE",
    "UPDATE accounts SET balance = balance + 1 WHERE id = -1 AND version = 0",
)
PAUSES: Final = Backoff(0.05, 0.4, jitter=(1.0, 1.0))
"""50 and 100 ms, then longer: the interferer lets no attempt but the first two fail."""
PAUSES_APART: Final = Backoff(0.05, 0.4, jitter=(0.5, 1.5))
"""Without a lock, those who failed together must not try again together."""
RETRIES: Final = 10


async def fill(connection: asyncpg.Connection, size: Size) -> None:
    await connection.execute(
        "INSERT INTO accounts (id, balance) SELECT n, $2 FROM generate_series(0, $1 - 1) n",
        size.things,
        size.quantity,
    )


async def audit(connection: asyncpg.Connection, size: Size, answers: Answers) -> Books:
    lost = doubled = 0
    for row in await connection.fetch("SELECT id, balance FROM accounts"):
        found = (row["balance"] - size.quantity) // size.amount
        told = answers.succeeded[row["id"]]
        lost += max(0, told - found)
        doubled += max(0, found - told - answers.unknown[row["id"]])
    return Books(lost=lost, doubled=doubled)


def _after(tools: Tools, balance: int) -> int:
    """The balance after the change. Raises Refused."""
    if balance + tools.size.amount < 0:
        raise Refused
    return balance + tools.size.amount


async def _read_and_write(
    connection: asyncpg.Connection, tools: Tools, request: Request, balance: int
) -> None:
    changed = _after(tools, balance)
    await tools.work(request)
    await connection.execute(WRITE, request.thing, changed)


async def plain(tools: Tools, request: Request, hold: Hold | None = None) -> None:
    """Raises LockLost if the lease of ``hold`` has ended: nothing is committed then."""
    async with tools.transaction() as connection:
        balance = await connection.fetchval(READ, request.thing)
        await _read_and_write(connection, tools, request, balance)
        if hold is not None:
            hold.check()


async def _compare_and_write(tools: Tools, request: Request) -> bool:
    """Write if the version is still the one that was read."""
    async with tools.transaction() as connection:
        row = await connection.fetchrow(READ, request.thing)
        changed = _after(tools, row["balance"])
        await tools.work(request)
        values = request.thing, changed, row["version"]
        written = await connection.execute(COMPARE_AND_WRITE, *values) == "UPDATE 1"
    if not written:
        tools.notes.counts[CONFLICTS] += 1
    return bool(written)


def optimistic(retries: int) -> Run:
    async def run(tools: Tools, request: Request) -> None:
        for attempt in range(retries + 1):
            if attempt:
                await asyncio.sleep(PAUSES_APART.pause_s(attempt))
            if await _compare_and_write(tools, request):
                return
        raise Conflict

    return run


async def conditional(tools: Tools, request: Request) -> None:
    async with tools.transaction() as connection:
        await tools.work(request)
        if await connection.execute(ADD, request.thing, tools.size.amount) != "UPDATE 1":
            raise Refused


async def pessimistic(tools: Tools, request: Request) -> None:
    async with tools.row_lock(f"{READ} FOR UPDATE", request.thing) as (connection, rows):
        await _read_and_write(connection, tools, request, rows[0]["balance"])


async def share_then_update(tools: Tools, request: Request) -> None:
    """Two that share the lock wait for each other when both write."""
    async with tools.row_lock(f"{READ} FOR SHARE", request.thing) as (connection, rows):
        await _read_and_write(connection, tools, request, rows[0]["balance"])


async def locked(tools: Tools, request: Request) -> None:
    """Under the lock in Redis: read and write as if nobody else did."""
    async with tools.key_lock(request.thing) as hold:
        await plain(tools, request, hold)


async def around(tools: Tools, request: Request) -> None:
    async with tools.key_lock(request.thing):
        for attempt in range(RETRIES + 1):
            if attempt:
                await asyncio.sleep(PAUSES.pause_s(attempt))
            if await _compare_and_write(tools, request):
                return
    raise Conflict


async def inside(tools: Tools, request: Request) -> None:
    for attempt in range(RETRIES + 1):
        if attempt:
            await asyncio.sleep(PAUSES.pause_s(attempt))
        async with tools.key_lock(request.thing):
            if await _compare_and_write(tools, request):
                return
    raise Conflict


async def queued(tools: Tools, request: Request) -> None:
    await tools.enqueue(request)


async def submitted(tools: Tools, request: Request) -> None:
    await tools.submit(request)


_LOCK: Final = (
    "SELECT id, balance FROM accounts WHERE id = ANY(CAST(:ids AS bigint[]))"
    " ORDER BY id FOR NO KEY UPDATE"
)
_LOCK_ALL: Final = sa.text(_LOCK)
_LOCK_FREE: Final = sa.text(f"{_LOCK} SKIP LOCKED")
_SAVE: Final = sa.text(
    "UPDATE accounts SET balance = new.balance, version = version + 1"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:balances AS bigint[])) AS new (id, balance)"
    " WHERE accounts.id = new.id"
)


@dataclass(frozen=True, slots=True)
class Decider:
    """Decides a lane's batch on locked accounts."""

    tools: Tools
    work_each: bool = False
    """The slow part once for each command, or once for the batch."""

    async def __call__(
        self, connection: Connection, commands: Sequence[object], *, wait_for_locks: bool
    ) -> list[Outcome[str]]:
        requests = [command for command in commands if isinstance(command, Request)]
        ids = sorted({request.thing for request in requests})
        rows = await connection.execute(_LOCK_ALL if wait_for_locks else _LOCK_FREE, {"ids": ids})
        balances: dict[int, int] = {row.id: row.balance for row in rows}
        await self._work([request for request in requests if request.thing in balances])
        outcomes: list[Outcome[str]] = []
        for request in requests:
            if request.thing not in balances:
                outcomes.append(RowLocked(request.thing))
            elif balances[request.thing] + self.tools.size.amount < 0:
                outcomes.append("insufficient")
            else:
                balances[request.thing] += self.tools.size.amount
                outcomes.append("")
        if balances:
            changed = {"ids": list(balances), "balances": list(balances.values())}
            await connection.execute(_SAVE, changed)
        return outcomes

    async def _work(self, requests: Sequence[Request]) -> None:
        parts = [[one] for one in requests] if self.work_each else [requests] if requests else []
        for part in parts:
            await self.tools.work(*part)


ACCOUNT_KEY: Final = "lab:account:{thing}"
LANE: Final = Strategy(run=submitted, lane=LaneOf(decide=Decider, redis_key=ACCOUNT_KEY))
LANE_WORK_EACH: Final = Strategy(
    run=submitted,
    lane=LaneOf(decide=lambda tools: Decider(tools, work_each=True), redis_key=ACCOUNT_KEY),
)

COMMON: Final = {
    "none": Strategy(run=plain, right=False),
    "optimistic": Strategy(run=optimistic(0)),
    "optimistic+1": Strategy(run=optimistic(1)),
    "optimistic+10": Strategy(run=optimistic(RETRIES)),
    "conditional": Strategy(run=conditional),
    "pessimistic": Strategy(run=pessimistic),
    "simple": Strategy(run=locked, waiting=Waiting.SIMPLE),
    "spin": Strategy(run=locked, waiting=Waiting.SPIN),
    "handoff": Strategy(run=locked, waiting=Waiting.HANDOFF),
}
QUEUE: Final = Strategy(run=queued, consume=plain)
AROUND: Final = Strategy(run=around, waiting=Waiting.HANDOFF)
INSIDE: Final = Strategy(run=inside, waiting=Waiting.HANDOFF)
SHARE: Final = Strategy(run=share_then_update)


def touched_throughout(run: Run) -> Run:
    """``run``, after which the interferer has written as often as it does for every request."""

    async def with_the_rest(tools: Tools, request: Request) -> None:
        try:
            await run(tools, request)
        finally:
            tools.touch(request, TOUCHES)

    return with_the_rest
