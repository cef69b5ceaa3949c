"""The first line of defence on Redis or Valkey: one script for all keys of a batch.

Redis orders contenders and decides nothing. Every key has a lease after which it expires, no
answer within 100 ms counts as absent, and a circuit breaker skips Redis while it fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import Counter, Gauge
from redis.asyncio import Redis

from common.ids import new_id
from common.locking.locks import Grant, Locks, NoLocks
from common.locking.redis import RedisCalls, RedisUnavailable, open_redis
from common.metrics import REGISTRY

LEASE_MS: Final = 2_000
"""Longer than a batch takes, shorter than anyone would want to wait for a dead replica."""

_ACQUIRE: Final = """
local taken = {}
for i, key in ipairs(KEYS) do
  if redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then taken[i] = 1 else taken[i] = 0 end
end
return taken
"""
# Only the owner frees a key: after an expired lease another owner may hold it.
_RELEASE: Final = """
local freed = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then freed = freed + redis.call('DEL', key) end
end
return freed
"""

_keys = Counter(
    "tally_lock_keys",
    "Lock keys asked for, by outcome: held, busy or absent (Redis unavailable).",
    ("outcome",),
    registry=REGISTRY,
)
_absent = Gauge(
    "tally_lock_absent", "1 while locking goes on without Redis, else 0.", registry=REGISTRY
)


@asynccontextmanager
async def open_locks(url: str) -> AsyncIterator[Locks]:
    """Locks on the Redis at ``url``; an empty URL means no first line."""
    if not url:
        yield NoLocks()
        return
    async with open_redis(url) as redis:
        yield RedisLocks(redis)


class RedisLocks:
    """Locks on one Redis. Call it from tasks that are not cancelled (a lane's own)."""

    def __init__(self, redis: Redis) -> None:
        self._acquire = redis.register_script(_ACQUIRE)
        self._release = redis.register_script(_RELEASE)
        self._calls = RedisCalls("redis_lock_absent")

    async def acquire(self, keys: Collection[str]) -> Grant:
        """Take the keys that are free and report those that are busy."""
        wanted = sorted(keys)
        token = new_id()
        try:
            taken = await self._calls.call(
                "acquire_locks", lambda: self._acquire(keys=wanted, args=[token, LEASE_MS])
            )
        except RedisUnavailable:
            _absent.set(1)
            _keys.labels("absent").inc(len(wanted))
            # If they were taken and the reply was lost, they expire; others wait 50 ms for them.
            return Grant(token, frozenset(), frozenset())
        _absent.set(0)
        acquired = frozenset(key for key, ok in zip(wanted, taken, strict=True) if ok)
        busy = frozenset(wanted) - acquired
        _keys.labels("held").inc(len(acquired))
        _keys.labels("busy").inc(len(busy))
        return Grant(token, acquired, busy)

    async def release(self, grant: Grant) -> None:
        """Free the keys that the grant still owns."""
        if not grant.acquired:
            return
        try:
            await self._calls.call(
                "release_locks",
                lambda: self._release(keys=sorted(grant.acquired), args=[grant.token]),
            )
        except RedisUnavailable:
            _absent.set(1)
        else:
            _absent.set(0)
