"""Seats (R9): many users want one seat at once; those who lose should hear it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import asyncpg
import sqlalchemy as sa

from benchmarks.lab.experiment import Answers, Books, Experiment, LaneOf, Strategy, plan_copies
from benchmarks.lab.notes import CONFLICTS, FIRST_CHECK
from benchmarks.lab.size import Request, Size
from benchmarks.lab.tools import Refused, Tools
from common.batching.outcomes import Outcome, RowLocked
from common.db.statements import Connection
from common.locking.key_lease import Hold
from common.locking.key_line import Waiting

SCHEMA: Final = """
CREATE TABLE seats (
    id      bigint PRIMARY KEY,
    state   text NOT NULL DEFAULT 'FREE',
    version bigint NOT NULL DEFAULT 0
);
CREATE TABLE sales (seat bigint NOT NULL, user_id bigint NOT NULL);
"""
SEAT_ONCE: Final = "CREATE UNIQUE INDEX sales_seat_once ON sales (seat);"
READ: Final = "SELECT state, version FROM seats WHERE id = $1"
SELL: Final = "UPDATE seats SET state = 'SOLD', version = version + 1 WHERE id = $1"
SELL_IF_FREE: Final = f"{SELL} AND state = 'FREE'"
SELL_IF_SAME: Final = f"{SELL} AND version = $2"
INSERT: Final = "INSERT INTO sales VALUES ($1, $2)"
INSERT_ONCE: Final = f"{INSERT} ON CONFLICT DO NOTHING"
WARM_UP: Final = (
    "SELECT state FROM seats WHERE id = -1 FOR UPDATE",
    "UPDATE seats SET state = 'SOLD' WHERE id = -1 AND state = 'FREE' AND version = 0",
    "INSERT INTO sales SELECT 0, 0 WHERE false",
)


async def fill(connection: asyncpg.Connection, size: Size) -> None:
    await connection.execute(
        "INSERT INTO seats (id) SELECT generate_series(0, $1 - 1)", size.things
    )


async def audit(connection: asyncpg.Connection, size: Size, answers: Answers) -> Books:
    del size
    lost = doubled = 0
    rows = await connection.fetch(
        "SELECT id, state, (SELECT count(*) FROM sales WHERE seat = id) AS sales FROM seats"
    )
    for row in rows:
        sold = row["state"] == "SOLD"
        lost += max(0, answers.succeeded[row["id"]] - row["sales"]) + int(row["sales"] and not sold)
        doubled += max(0, row["sales"] - 1)
    return Books(lost=lost, doubled=doubled)


async def first_check(tools: Tools, request: Request) -> None:
    """Read without a lock. Raises Refused if the seat is taken."""
    row = await tools.pool.fetchrow(READ, request.thing)
    if row["state"] != "FREE":
        tools.notes.counts[FIRST_CHECK] += 1
        raise Refused


async def _sell(connection: asyncpg.Connection, tools: Tools, request: Request, state: str) -> None:
    if state != "FREE":
        raise Refused
    await tools.work(request)
    await connection.execute(SELL, request.thing)
    await connection.execute(INSERT, request.thing, request.user)


async def alone(tools: Tools, request: Request, hold: Hold | None = None) -> None:
    """As if nobody else did. Raises LockLost if the lease of ``hold`` has ended."""
    async with tools.transaction() as connection:
        state = await connection.fetchval(READ, request.thing)
        await _sell(connection, tools, request, state)
        if hold is not None:
            hold.check()


async def none(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    await alone(tools, request)


async def conditional(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.transaction() as connection:
        if await connection.execute(SELL_IF_FREE, request.thing) != "UPDATE 1":
            raise Refused
        await tools.work(request)
        await connection.execute(INSERT, request.thing, request.user)


async def no_wait(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    try:
        async with tools.row_lock(f"{READ} FOR UPDATE NOWAIT", request.thing) as (session, rows):
            await _sell(session, tools, request, rows[0]["state"])
    except asyncpg.LockNotAvailableError:
        raise Refused from None


async def pessimistic(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.row_lock(f"{READ} FOR UPDATE", request.thing) as (connection, rows):
        await _sell(connection, tools, request, rows[0]["state"])


async def locked(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.key_lock(request.thing) as hold:
        await alone(tools, request, hold)


async def locked_with_version(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.key_lock(request.thing), tools.transaction() as connection:
        row = await connection.fetchrow(READ, request.thing)
        if row["state"] != "FREE":
            raise Refused
        await tools.work(request)
        sold = await connection.execute(SELL_IF_SAME, request.thing, row["version"])
        if sold != "UPDATE 1":
            tools.notes.counts[CONFLICTS] += 1
            raise Refused
        await connection.execute(INSERT, request.thing, request.user)


async def unique_first(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.transaction() as connection:
        if await connection.execute(INSERT_ONCE, request.thing, request.user) != "INSERT 0 1":
            tools.notes.counts[CONFLICTS] += 1
            raise Refused
        await tools.work(request)
        await connection.execute(SELL, request.thing)


async def submitted(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    await tools.submit(request)


_LOCK: Final = (
    "SELECT id, state FROM seats WHERE id = ANY(CAST(:ids AS bigint[]))"
    " ORDER BY id FOR NO KEY UPDATE"
)
_LOCK_ALL: Final = sa.text(_LOCK)
_LOCK_FREE: Final = sa.text(f"{_LOCK} SKIP LOCKED")
_SELL: Final = sa.text(
    "UPDATE seats SET state = 'SOLD', version = version + 1 WHERE id = ANY(CAST(:ids AS bigint[]))"
)
_INSERT: Final = sa.text(
    "INSERT INTO sales SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:users AS bigint[]))"
)


class Decider:
    """Decides a lane's batch on locked seats."""

    def __init__(self, tools: Tools) -> None:
        self._work_s = tools.size.work_ms / 1000

    async def __call__(
        self, connection: Connection, commands: Sequence[object], *, wait_for_locks: bool
    ) -> list[Outcome[str]]:
        requests = [command for command in commands if isinstance(command, Request)]
        ids = sorted({request.thing for request in requests})
        rows = await connection.execute(_LOCK_ALL if wait_for_locks else _LOCK_FREE, {"ids": ids})
        states = {row.id: row.state for row in rows}
        sold: dict[int, int] = {}
        outcomes: list[Outcome[str]] = []
        for request in requests:
            if request.thing not in states:
                outcomes.append(RowLocked(request.thing))
            elif states[request.thing] != "FREE" or request.thing in sold:
                outcomes.append("taken")
            else:
                sold[request.thing] = request.user
                outcomes.append("")
        if sold:
            await asyncio.sleep(self._work_s)
            await connection.execute(_SELL, {"ids": list(sold)})
            await connection.execute(_INSERT, {"ids": list(sold), "users": list(sold.values())})
        return outcomes


_SIZE: Final = Size(requests=100, work_ms=20.0)
EXPERIMENT: Final = Experiment(
    key="seats",
    title="R9. One seat, a hundred users",
    what="{requests} users want one seat at once; {work_ms:g} ms of work in the transaction that "
    "sells it.",
    full=_SIZE,
    quick=_SIZE,
    tiny=replace(_SIZE, requests=16, processes=2, sessions=3),
    schema=SCHEMA,
    fill=fill,
    warm_up=WARM_UP,
    plan=plan_copies,
    strategies={
        "none": Strategy(run=none, right=False),
        "conditional": Strategy(run=conditional),
        "no-wait": Strategy(run=no_wait),
        "pessimistic": Strategy(run=pessimistic),
        "simple": Strategy(run=locked, waiting=Waiting.SIMPLE),
        "spin": Strategy(run=locked, waiting=Waiting.SPIN),
        "handoff": Strategy(run=locked, waiting=Waiting.HANDOFF),
        "handoff+version": Strategy(run=locked_with_version, waiting=Waiting.HANDOFF),
        "unique": Strategy(run=unique_first, guards=SEAT_ONCE),
        "lane": Strategy(run=submitted, lane=LaneOf(decide=Decider, redis_key="lab:seat:{thing}")),
    },
    audit=audit,
)
