"""Payments (R7): five identical confirmations of each, over several processes, and a gateway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import asyncpg
import sqlalchemy as sa

from benchmarks.lab.experiment import Answers, Books, Experiment, LaneOf, Run, Strategy, plan_copies
from benchmarks.lab.notes import CONFLICTS
from benchmarks.lab.size import Request, Size
from benchmarks.lab.tools import Conflict, Refused, Tools
from common.batching.outcomes import Outcome, RowLocked
from common.db.statements import Connection

SCHEMA: Final = """
CREATE TABLE payments (
    id      bigint PRIMARY KEY,
    state   text NOT NULL DEFAULT 'READY',
    version bigint NOT NULL DEFAULT 0
);
CREATE TABLE claims (payment bigint PRIMARY KEY);
"""
READ: Final = "SELECT state, version FROM payments WHERE id = $1"
MOVE: Final = "UPDATE payments SET state = $3, version = version + 1 WHERE id = $1 AND state = $2"
COMPARE: Final = (
    "UPDATE payments SET state = 'DONE', version = version + 1 WHERE id = $1 AND version = $2"
)
SET_DONE: Final = "UPDATE payments SET state = 'DONE', version = version + 1 WHERE id = $1"
LOCK_READY: Final = f"{READ} AND state = 'READY' FOR UPDATE"
CLAIM: Final = "INSERT INTO claims VALUES ($1) ON CONFLICT DO NOTHING"
GATEWAY_FACTORS: Final = (1.0, 5.0)
"""The gateway takes from ``work_ms`` to five times that."""
MARK_S: Final = 120
WARM_UP: Final = (
    "SELECT state FROM payments WHERE id = -1 FOR UPDATE",
    "UPDATE payments SET state = 'DONE' WHERE id = -1 AND state = 'READY' AND version = 0",
    "INSERT INTO claims SELECT 0 WHERE false",
)


async def fill(connection: asyncpg.Connection, size: Size) -> None:
    await connection.execute(
        "INSERT INTO payments (id) SELECT generate_series(0, $1 - 1)", size.things
    )


async def audit(connection: asyncpg.Connection, size: Size, answers: Answers) -> Books:
    """A payment is doubled by each further call of the gateway, and lost if it is not done."""
    del size
    lost = doubled = 0
    for row in await connection.fetch("SELECT id, state FROM payments"):
        told = answers.succeeded[row["id"]]
        doubled += max(0, answers.gateway[row["id"]] - 1)
        done = row["state"] == "DONE"
        if not answers.unknown[row["id"]]:
            lost += (not done) or not told
    return Books(lost=lost, doubled=doubled)


async def gateway(tools: Tools, request: Request) -> None:
    """The call of the payment gateway, which takes the money each time.

    It takes as long for each copy of a payment, under each strategy.
    """
    tools.notes.gateway[request.thing] += 1
    factor = random.Random(request.thing).uniform(*GATEWAY_FACTORS)
    await asyncio.sleep(factor * tools.size.work_ms / 1000)


async def in_process_flag(tools: Tools, request: Request) -> None:
    """A set of what is under way, in the memory of one process."""
    if request.thing in tools.flags:
        raise Refused
    tools.flags.add(request.thing)
    await gateway(tools, request)
    await tools.pool.execute(SET_DONE, request.thing)


def optimistic(retries: int) -> Run:
    async def run(tools: Tools, request: Request) -> None:
        for attempt in range(retries + 1):
            if attempt:
                await asyncio.sleep(0.05)
            row = await tools.pool.fetchrow(READ, request.thing)
            if row["state"] != "READY":
                raise Refused
            await gateway(tools, request)
            if await tools.pool.execute(COMPARE, request.thing, row["version"]) == "UPDATE 1":
                return
            tools.notes.counts[CONFLICTS] += 1
        raise Conflict

    return run


async def _move(tools: Tools, request: Request, before: str, after: str) -> None:
    if await tools.pool.execute(MOVE, request.thing, before, after) != "UPDATE 1":
        raise Refused


async def conditional(tools: Tools, request: Request) -> None:
    await _move(tools, request, "READY", "BUSY")
    await gateway(tools, request)
    await _move(tools, request, "BUSY", "DONE")


async def pessimistic(tools: Tools, request: Request) -> None:
    """The row stays locked, and the session in use, while the gateway is called."""
    async with tools.row_lock(f"{READ} FOR UPDATE", request.thing) as (connection, rows):
        if rows[0]["state"] != "READY":
            raise Refused
        await gateway(tools, request)
        await connection.execute(SET_DONE, request.thing)


async def state_in_lock(tools: Tools, request: Request) -> None:
    """Who waited for the row finds it in another state, and locks nothing."""
    async with tools.row_lock(LOCK_READY, request.thing) as (connection, rows):
        if not rows:
            raise Refused
        await connection.execute(MOVE, request.thing, "READY", "BUSY")
    await gateway(tools, request)
    await _move(tools, request, "BUSY", "DONE")


async def unique_first(tools: Tools, request: Request) -> None:
    if await tools.pool.execute(CLAIM, request.thing) != "INSERT 0 1":
        tools.notes.counts[CONFLICTS] += 1
        raise Refused
    await gateway(tools, request)
    await tools.pool.execute(SET_DONE, request.thing)


async def redis_key(tools: Tools, request: Request) -> None:
    key = f"lab:payment:{request.thing}"
    if not await tools.redis.set(key, "IN_PROGRESS", nx=True, ex=MARK_S):
        raise Refused
    await gateway(tools, request)
    await tools.pool.execute(SET_DONE, request.thing)
    await tools.redis.set(key, f"DONE:{request.thing}", ex=MARK_S)


@dataclass(frozen=True, slots=True)
class Finish:
    """The payment's second step, after the gateway."""

    thing: int


async def submitted(tools: Tools, request: Request) -> None:
    await tools.submit(request)
    await gateway(tools, request)
    await tools.submit(Finish(request.thing))


_LOCK: Final = (
    "SELECT id, state FROM payments WHERE id = ANY(CAST(:ids AS bigint[]))"
    " ORDER BY id FOR NO KEY UPDATE"
)
_LOCK_ALL: Final = sa.text(_LOCK)
_LOCK_FREE: Final = sa.text(f"{_LOCK} SKIP LOCKED")
_SAVE: Final = sa.text(
    "UPDATE payments SET state = new.state, version = version + 1"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:states AS text[])) AS new (id, state)"
    " WHERE payments.id = new.id"
)


async def decide(
    connection: Connection, commands: Sequence[object], *, wait_for_locks: bool
) -> list[Outcome[str]]:
    """Claims and second steps together, on locked payments."""
    steps = [command for command in commands if isinstance(command, Request | Finish)]
    ids = sorted({step.thing for step in steps})
    rows = await connection.execute(_LOCK_ALL if wait_for_locks else _LOCK_FREE, {"ids": ids})
    states: dict[int, str] = {row.id: row.state for row in rows}
    outcomes: list[Outcome[str]] = []
    for step in steps:
        before, after = ("BUSY", "DONE") if isinstance(step, Finish) else ("READY", "BUSY")
        if step.thing not in states:
            outcomes.append(RowLocked(step.thing))
        elif states[step.thing] != before:
            outcomes.append(states[step.thing])
        else:
            states[step.thing] = after
            outcomes.append("")
    await connection.execute(_SAVE, {"ids": list(states), "states": list(states.values())})
    return outcomes


_SIZE: Final = Size(requests=20, things=20, copies=5, work_ms=100.0)
EXPERIMENT: Final = Experiment(
    key="payments",
    title="R7. Payments: five duplicates of each",
    what="{requests} payments, each confirmed {copies} times at once; the gateway takes 100 to 500 "
    "ms and counts its calls.",
    full=_SIZE,
    quick=replace(_SIZE, requests=2, things=2),
    tiny=replace(_SIZE, requests=2, things=2, work_ms=20.0, processes=2, sessions=3),
    schema=SCHEMA,
    fill=fill,
    warm_up=WARM_UP,
    plan=plan_copies,
    strategies={
        "flag": Strategy(run=in_process_flag, right=False),
        "optimistic": Strategy(run=optimistic(0), right=False),
        "optimistic+3": Strategy(run=optimistic(3), right=False),
        "conditional": Strategy(run=conditional),
        "pessimistic": Strategy(run=pessimistic),
        "state-in-lock": Strategy(run=state_in_lock),
        "unique": Strategy(run=unique_first),
        "mark": Strategy(run=redis_key),
        "lane": Strategy(run=submitted, lane=LaneOf(decide=lambda _: decide, redis_key=None)),
    },
    audit=audit,
)
