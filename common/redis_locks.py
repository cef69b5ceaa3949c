"""The first line of defence on Redis or Valkey: one script for all keys of a batch.

Redis orders the crowd and decides nothing: every key has a lease after which it frees itself, no
answer within 100 ms counts as absent, and a breaker takes the whole line away while Redis fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from common.ids import new_id
from common.locking import Grant, Locks, NoLocks
from common.metrics import REGISTRY
from common.redis_library import NoBackoff, Redis, RedisError, Retry

TIMEOUT_S: Final = 0.1
LEASE_MS: Final = 2_000
"""Longer than a batch takes, shorter than anyone would want to wait for a dead replica."""
FAILURES_MAX: Final = 3
RETRY_AFTER_S: Final = 2.0

_ACQUIRE: Final = """
local taken = {}
for i, key in ipairs(KEYS) do
  if redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then taken[i] = 1 else taken[i] = 0 end
end
return taken
"""
# Only the owner frees a key: after a lapsed lease it may be somebody else's.
_RELEASE: Final = """
local freed = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then freed = freed + redis.call('DEL', key) end
end
return freed
"""

_calls = Counter(
    "tally_lock_keys",
    "Lock keys asked for, by what came of it: held, busy or absent (Redis away).",
    ("outcome",),
    registry=REGISTRY,
)
_absent = Gauge(
    "tally_lock_absent", "1 while locking goes on without Redis, else 0.", registry=REGISTRY
)
_log = structlog.stdlib.get_logger()


def open_redis(url: str) -> Redis:
    """A client that gives up fast and never sends a command twice on its own.

    A repeated script after a lost reply would meet its own first run. A command in flight is ended
    by the client's own time limit, which also closes the connection, and by nothing else: a
    cancelled command has handed its reply to the next caller before (redis-py #2624, #2665).
    """
    return Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


async def reason_against(url: str) -> str:
    """Why Redis at ``url`` cannot be used now, in one line; empty if it can."""
    redis = open_redis(url)
    try:
        await redis.ping()
    except (RedisError, OSError, TimeoutError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        await redis.aclose()
    return ""


@asynccontextmanager
async def open_locks(url: str) -> AsyncIterator[Locks]:
    """The first line of defence at ``url``; an empty one means there is none."""
    if not url:
        yield NoLocks()
        return
    redis = open_redis(url)
    try:
        yield RedisLocks(redis)
    finally:
        await redis.aclose()


class RedisLocks:
    """Locks on one Redis. Call it from tasks that are not cancelled (a lane's own)."""

    def __init__(self, redis: Redis) -> None:
        self._acquire = redis.register_script(_ACQUIRE)
        self._release = redis.register_script(_RELEASE)
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=FAILURES_MAX, default_ttl=RETRY_AFTER_S
        )

    async def acquire(self, keys: Collection[str]) -> Grant:
        """Take the keys that are free, tell those that are busy."""
        wanted = sorted(keys)
        token = new_id()
        taken = await self._call(self._acquire, wanted, [token, LEASE_MS])
        if taken is None:
            _calls.labels("absent").inc(len(wanted))
            # Taken perhaps, and the reply lost: then they lapse; others wait 50 ms for them.
            return Grant(token, frozenset(), frozenset())
        held = frozenset(key for key, ok in zip(wanted, taken, strict=True) if ok)
        busy = frozenset(wanted) - held
        _calls.labels("held").inc(len(held))
        _calls.labels("busy").inc(len(busy))
        return Grant(token, held, busy)

    async def release(self, grant: Grant) -> None:
        """Free the keys that are still ours."""
        if grant.held:
            await self._call(self._release, sorted(grant.held), [grant.token])

    async def _call(self, script: Any, keys: list[str], args: list[Any]) -> Any:
        breaker = await self._breakers.get_breaker("redis")
        try:
            async with breaker:
                answer = await script(keys=keys, args=args)
        except OpenedState:
            _absent.set(1)
            return None
        except (RedisError, OSError, TimeoutError) as error:
            _absent.set(1)
            _log.warning("redis_lock_absent", error=type(error).__name__)
            return None
        _absent.set(0)
        return answer
