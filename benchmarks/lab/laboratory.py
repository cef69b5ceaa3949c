"""Runs the cells: fresh rows for each, a barrier, the race, and the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
from redis.asyncio import Redis
from yarl import URL

from benchmarks.lab.counters import (
    DATABASE,
    DatabaseCounters,
    RedisCounters,
    read_database,
    read_redis,
    reset_redis,
    until_no_session,
)
from benchmarks.lab.crew import Crew, started_crew
from benchmarks.lab.experiment import ERRORED, OK, REFUSED, Answers, Books, Experiment
from benchmarks.lab.figures import NONE, Figures, mean, percentile
from benchmarks.lab.notes import CONFLICTS, FIRST_CHECK
from benchmarks.lab.size import Size
from deploy.local.postgres import PostgresServer
from deploy.local.valkey import ValkeyServer

_TABLES: Final = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where PostgreSQL and Redis are."""

    admin_url: str
    redis_url: str

    @property
    def postgres_url(self) -> str:
        return str(URL(self.admin_url).with_path(f"/{DATABASE}"))


@contextmanager
def running_servers(folder: Path) -> Iterator[Servers]:
    """A PostgreSQL that syncs its log, and a Valkey. Enter it in the main thread."""
    with PostgresServer(folder / "postgres") as postgres, ValkeyServer(folder / "valkey") as valkey:
        yield Servers(postgres.admin_url, valkey.url)


class Laboratory:
    """The processes and sessions that run one cell after the other."""

    def __init__(
        self, servers: Servers, crew: Crew, admin: asyncpg.Connection, redis: Redis
    ) -> None:
        self._servers = servers
        self._crew = crew
        self._admin = admin
        self._redis = redis

    async def run(self, experiment: Experiment, strategy: str, size: Size, seed: int) -> Figures:
        """Run one cell once. Raises RunnerError."""
        await self._fresh_rows(experiment, strategy, size)
        await reset_redis(self._redis)
        urls = {
            "postgres_url": self._servers.postgres_url,
            "redis_url": self._servers.redis_url,
        }
        await self._crew.open(experiment.key, strategy, size, seed, urls)
        await self._redis.config_resetstat()
        before = await read_database(self._admin)
        at_ns, replies = await self._crew.go(size)
        calls = await read_redis(self._redis)
        await until_no_session(self._admin)
        used = (await read_database(self._admin)).since(before)
        books = await self._audit(experiment, size, answers_of(replies))
        asked = len(experiment.plan(size, seed))
        return figures_of(asked, at_ns, replies, books=books, used=used, calls=calls)

    async def _fresh_rows(self, experiment: Experiment, strategy: str, size: Size) -> None:
        async with _session(self._servers.postgres_url) as connection:
            await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            await connection.execute(experiment.schema)
            guards = experiment.strategies[strategy].guards
            if guards:
                await connection.execute(guards.format(quantity=size.quantity))
            await experiment.fill(connection, size)
            for table in await connection.fetch(_TABLES):
                await connection.execute(f'ANALYZE "{table["tablename"]}"')
        await until_no_session(self._admin)

    async def _audit(self, experiment: Experiment, size: Size, answers: Answers) -> Books:
        async with _session(self._servers.postgres_url) as connection:
            return await experiment.audit(connection, size, answers)


@asynccontextmanager
async def opened_laboratory(servers: Servers, processes: int) -> AsyncIterator[Laboratory]:
    """A database of its own, and the processes."""
    async with AsyncExitStack() as exits:
        admin = await exits.enter_async_context(_session(servers.admin_url))
        await admin.execute(f'DROP DATABASE IF EXISTS "{DATABASE}" WITH (FORCE)')
        await admin.execute(f'CREATE DATABASE "{DATABASE}"')
        redis = await exits.enter_async_context(
            Redis.from_url(servers.redis_url, decode_responses=True)
        )
        crew = await exits.enter_async_context(started_crew(processes))
        yield Laboratory(servers, crew, admin, redis)


@asynccontextmanager
async def _session(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


# -- the figures of a run --------------------------------------------------------------------------


def answers_of(replies: Sequence[dict[str, Any]]) -> Answers:
    """What the callers of all processes were told."""
    answers = Answers()
    for each in replies:
        answers.succeeded.update(thing for thing, outcome, _ in each["answers"] if outcome == OK)
        answers.unknown.update(each["unknown"])
        for thing, calls in each["gateway"]:
            answers.gateway[thing] += calls
    return answers


def figures_of(
    asked: int,
    at_ns: int,
    replies: Sequence[dict[str, Any]],
    *,
    books: Books,
    used: DatabaseCounters,
    calls: RedisCounters,
) -> Figures:
    answers = [answer for each in replies for answer in each["answers"]]
    outcomes = Counter(outcome for _, outcome, _ in answers)
    latencies_ms = {
        wanted: [ms for _, outcome, ms in answers if outcome == wanted] for wanted in (OK, REFUSED)
    }
    all_ms = [ms for _, _, ms in answers]
    counts: Counter[str] = Counter()
    for each in replies:
        counts.update(each["counts"])
    gateway_calls = sum(calls for each in replies for _, calls in each["gateway"])
    return Figures(
        asked=asked,
        succeeded=outcomes[OK],
        refused=outcomes[REFUSED],
        errored=outcomes[ERRORED],
        unfinished=asked - len(answers),
        lost=books.lost,
        doubled=books.doubled,
        oversold=books.oversold,
        wall_ms=(max(each["ended_ns"] for each in replies) - at_ns) / 1e6,
        p50_ms=percentile(all_ms, 50),
        p95_ms=percentile(all_ms, 95),
        p99_ms=percentile(all_ms, 99),
        refused_p99_ms=percentile(latencies_ms[REFUSED], 99),
        succeeded_p95_ms=percentile(latencies_ms[OK], 95),
        database_ms=used.active_ms,
        connection_ms=used.held_ms,
        lock_wait_ms=mean([ms for each in replies for ms in each["waits_ms"]]),
        lock_hold_ms=mean([ms for each in replies for ms in each["holds_ms"]]),
        queue_length=sum(each["depth_max"] for each in replies) or NONE,
        conflicts=counts[CONFLICTS],
        deadlocks=used.deadlocks,
        first_check=counts[FIRST_CHECK],
        gateway_calls=gateway_calls or NONE,
        redis_calls=calls.calls,
        redis_messages=calls.messages,
    )
