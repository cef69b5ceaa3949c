"""Opens the tools of a process for a cell: warm sessions, locks, a lane, a queue, an interferer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import asyncpg
from redis.asyncio import Redis
from redis.maint_notifications import MaintNotificationsConfig

from benchmarks.lab.experiment import Experiment, LaneOf, Run, Strategy
from benchmarks.lab.payments import Finish
from benchmarks.lab.size import Request, Size
from benchmarks.lab.stream_queue import Consume, open_queue
from benchmarks.lab.tools import Refused, Tools
from common.batching.lane import Lane
from common.db.database import Database, open_pools
from common.locking import redis as locking_redis
from common.locking.key_locks import open_key_locks
from common.locking.redis_lock import open_locks
from common.locking.strategy import RowStrategy
from common.locking.strategy import Strategy as LaneStrategy

FLUSH: Final = "SELECT pg_stat_force_next_flush()"
"""The time of the warm-up is counted before the cell begins."""
LANE_SESSIONS: Final = 4
"""Two for batches and two for batches that wait; the others are for reads before the lane."""
LANE_POOL: Final = 7
"""As many as ``open_pools`` wants for that, with those that are not opened here."""
LEASE_S: Final = 10.0
"""Of the locks: callers wait for a session of PostgreSQL while they hold one."""
INTERFERERS: Final = 4
CONNECTIONS_MAX: Final = 1_000
REDIS_TIMEOUT_S: Final = 5.0
"""The load runs on the same cores as Redis: a late reply is no outage here."""


async def _keep(_connection: object) -> None:
    """Reset nothing when a session is given back: no strategy leaves anything behind."""


@asynccontextmanager
async def _pool(url: str, warm_up: Sequence[str], size: int) -> AsyncIterator[asyncpg.Pool]:
    async def warm(connection: asyncpg.Connection) -> None:
        for statement in (*warm_up, FLUSH):
            await connection.execute(statement)

    pool = await asyncpg.create_pool(url, min_size=size, max_size=size, init=warm, reset=_keep)
    try:
        yield pool
    finally:
        # Sessions of a cell that ran out of time are in the middle of something.
        pool.terminate()


def open_client(url: str) -> Redis:
    """A client for the strategies' own commands, with a connection for each caller."""
    return Redis.from_url(
        url,
        decode_responses=True,
        max_connections=CONNECTIONS_MAX,
        # If they may arrive, the client may lose the reply of a command that blocks.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


@asynccontextmanager
async def _lane(
    postgres_url: str, redis_url: str, of: LaneOf, warm_up: Sequence[str], tools: Tools
) -> AsyncIterator[Lane[object, str]]:
    database = open_pools(postgres_url, application_name="lab", pool_size=LANE_POOL)
    why = "the lab's: rows locked in ascending order"
    strategies = {
        Request: LaneStrategy(
            rows=RowStrategy.FOR_UPDATE, guards=(), redis_key=of.redis_key, why=why
        ),
        Finish: LaneStrategy(rows=RowStrategy.FOR_UPDATE, guards=(), why=why),
    }
    try:
        await _warm(database, warm_up)
        async with open_locks(redis_url) as locks:
            yield Lane("lab", database, of.decide(tools), locks, strategies)
    finally:
        await database.close()


async def _warm(database: Database, warm_up: Sequence[str]) -> None:
    for pool in (database.lanes, database.waiting):
        async with AsyncExitStack() as exits:
            for _ in range(pool.size):
                connection = await exits.enter_async_context(pool.connect())
                for statement in (*warm_up, FLUSH):
                    await connection.session.execute(statement)


@asynccontextmanager
async def open_tools(
    experiment: Experiment,
    strategy: Strategy,
    size: Size,
    process: int,
    *,
    postgres_url: str,
    redis_url: str,
) -> AsyncIterator[Tools]:
    """What ``strategy`` needs, and nothing else."""
    locking_redis.TIMEOUT_S = REDIS_TIMEOUT_S  # type: ignore[misc]
    async with AsyncExitStack() as exits:
        redis = await exits.enter_async_context(open_client(redis_url))
        warm_up = experiment.warm_up
        sessions = size.sessions
        if strategy.lane is not None:
            sessions = max(1, sessions - LANE_SESSIONS)
        pool = await exits.enter_async_context(_pool(postgres_url, warm_up, sessions))
        tools = Tools(size, process, pool, redis, waiting=strategy.waiting)
        if experiment.interferer:
            interferers = _pool(postgres_url, warm_up, min(INTERFERERS, size.sessions))
            tools.interferer = await exits.enter_async_context(interferers)
        if strategy.waiting is not None:
            locks = open_key_locks(redis_url, "lab", waiting=strategy.waiting, lease_s=LEASE_S)
            tools.locks = await exits.enter_async_context(locks)
        if strategy.lane is not None:
            lane = _lane(postgres_url, redis_url, strategy.lane, warm_up, tools)
            tools.lane = await exits.enter_async_context(lane)
        if strategy.consume is not None:
            handle = _handler(strategy.consume, tools)
            queue = open_queue(redis, process, size.processes, handle)
            tools.queue = await exits.enter_async_context(queue)
        yield tools
        await tools.interfered()


def _handler(consume: Run, tools: Tools) -> Consume:
    async def handle(request: Request) -> bool:
        try:
            await consume(tools, request)
        except Refused:
            return False
        return True

    return handle
