"""What PostgreSQL and Redis count by themselves while a cell runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from redis.asyncio import Redis

from deploy.local.errors import RunnerError

DATABASE: Final = "lab"
QUIET_POLL_S: Final = 0.01
QUIET_LIMIT_S: Final = 120.0
_SESSIONS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
)
_STATISTICS: Final = (
    "SELECT active_time, active_time + idle_in_transaction_time AS held, deadlocks"
    " FROM pg_stat_database WHERE datname = $1"
)
SCRIPTS: Final = ("evalsha", "eval")
PLAIN: Final = ("set", "xadd", "xreadgroup", "xack", "publish")


@dataclass(frozen=True, slots=True)
class DatabaseCounters:
    """Since the database was created, or between two readings; times in milliseconds."""

    active_ms: float
    held_ms: float
    deadlocks: int

    def since(self, before: DatabaseCounters) -> DatabaseCounters:
        return DatabaseCounters(
            self.active_ms - before.active_ms,
            self.held_ms - before.held_ms,
            self.deadlocks - before.deadlocks,
        )


async def read_database(admin: asyncpg.Connection) -> DatabaseCounters:
    """``admin`` is a session in another database."""
    row = await admin.fetchrow(_STATISTICS, DATABASE)
    return DatabaseCounters(row["active_time"], row["held"], row["deadlocks"])


async def until_no_session(admin: asyncpg.Connection) -> None:
    """Wait until every session has ended: then each has reported what it did.

    Raises RunnerError if one does not end.
    """
    try:
        async with asyncio.timeout(QUIET_LIMIT_S):
            # The server does not say when a session ends.
            while await admin.fetchval(_SESSIONS, DATABASE):  # noqa: ASYNC110
                await asyncio.sleep(QUIET_POLL_S)
    except TimeoutError:
        raise RunnerError("a session of the lab's database does not end") from None


@dataclass(frozen=True, slots=True)
class RedisCounters:
    """Since the last reset."""

    calls: int
    """Commands that clients have sent, a script as one."""
    messages: int
    """Published messages, those of scripts included."""


async def reset_redis(redis: Redis) -> None:
    await redis.flushall()
    await redis.config_resetstat()


async def read_redis(redis: Redis) -> RedisCounters:
    found: dict[str, Any] = await redis.info("commandstats")

    def calls(command: str) -> int:
        return int(found.get(f"cmdstat_{command}", {}).get("calls", 0))

    # What a script runs is counted too: no strategy has both scripts and commands of its own.
    sent = sum(map(calls, SCRIPTS)) or sum(map(calls, PLAIN))
    return RedisCounters(sent, calls("publish"))
