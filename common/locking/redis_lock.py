"""The first line of defence on Redis or Valkey: one script for all keys of a batch.

Redis orders contenders and decides nothing. Every key has a lease after which it expires; an
error, no reply within 100 ms, or one of another form counts as absent, and a circuit breaker skips
Redis while it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain, groupby
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ClusterCrossSlotError

from common.ids import new_id
from common.locking.locks import Grant, Locks, NoLocks
from common.locking.redis import (
    CALLS_MAX,
    RedisCalls,
    RedisUnavailable,
    Script,
    UnexpectedReply,
    open_redis,
    slot_of,
)
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
    "Lock keys asked for, by outcome: held, busy, absent (Redis unavailable) or cross_slot (a "
    "cluster has the keys of the batch on several nodes).",
    ("outcome",),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()
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

    def __init__(self, redis: Redis | RedisCluster) -> None:
        self._redis = redis
        self._acquire = Script(redis, _ACQUIRE)
        self._release = Script(redis, _RELEASE)
        self._calls = RedisCalls(redis, "redis_lock_absent")
        self._turns = asyncio.Semaphore(CALLS_MAX)
        """Of the parts of batches in a cluster, which need a connection each."""
        self._cross_slot_logged = False

    async def acquire(self, keys: Collection[str]) -> Grant:
        """Take the keys that are free and report those that are busy."""
        parts = self._parts(keys)
        wanted = list(chain.from_iterable(parts))
        token = new_id()
        try:
            taken = await self._calls.call(
                "acquire_locks",
                lambda: self._send(parts, token),
                lambda reply: _read_taken(reply, len(wanted)),
            )
        except RedisUnavailable:
            # If they were taken and the reply was lost, they expire; others wait 50 ms for them.
            return _no_grant(token, wanted, "absent")
        if taken is None:
            self._log_cross_slot()
            return _no_grant(token, wanted, "cross_slot")
        _absent.set(0)
        acquired = frozenset(key for key, each in zip(wanted, taken, strict=True) if each is True)
        busy = frozenset(key for key, each in zip(wanted, taken, strict=True) if each is False)
        absent = len(wanted) - len(acquired) - len(busy)
        _keys.labels("held").inc(len(acquired))
        _keys.labels("busy").inc(len(busy))
        if absent:
            _absent.set(1)
            _keys.labels("absent").inc(absent)
        return Grant(token, acquired, busy)

    async def release(self, grant: Grant) -> None:
        """Free the keys that the grant still owns."""
        if not grant.acquired:
            return
        parts = self._parts(grant.acquired)
        try:
            await self._calls.call(
                "release_locks",
                lambda: self._send_release(parts, grant.token),
                lambda reply: _read_freed(reply, len(grant.acquired)),
            )
        except RedisUnavailable:
            _absent.set(1)
        else:
            _absent.set(0)

    def _parts(self, keys: Collection[str]) -> list[list[str]]:
        """The keys that one script takes: all, or those of one slot of a cluster."""
        ordered = sorted(keys)
        if not isinstance(self._redis, RedisCluster):
            return [ordered]
        slots = groupby(sorted(ordered, key=slot_of), slot_of)
        return [list(part) for _, part in slots]

    async def _send(self, parts: Sequence[Sequence[str]], token: str) -> object:
        """The reply to all parts; _CROSS_SLOT from a server that has not all of the keys.

        That is no failure: a node of a cluster replies, and would grant the keys one by one. A part
        without a list of its own length as the reply has _NO_REPLY for each key.
        """
        if len(parts) == 1:
            try:
                return await self._acquire(parts[0], token, LEASE_MS)
            except ClusterCrossSlotError:
                return _CROSS_SLOT
        replies = await self._replies(self._acquire(part, token, LEASE_MS) for part in parts)
        taken: list[object] = []
        for part, reply in zip(parts, replies, strict=True):
            right = isinstance(reply, list) and len(reply) == len(part)
            taken += reply if right else [_NO_REPLY] * len(part)
        return taken

    async def _send_release(self, parts: Sequence[Sequence[str]], token: str) -> object:
        if len(parts) == 1:
            return await self._release(parts[0], token)
        replies = await self._replies(self._release(part, token) for part in parts)
        return sum(reply for reply in replies if type(reply) is int)

    async def _replies(self, sent: Iterable[Awaitable[object]]) -> list[Any]:
        """The replies to the parts of a batch, or errors. Raises if none has a reply.

        With one node of a cluster away, the keys of the others are still locked.
        """

        async def in_turn(part: Awaitable[object]) -> object:
            async with self._turns:
                return await part

        replies = await asyncio.gather(*map(in_turn, sent), return_exceptions=True)
        errors = [reply for reply in replies if isinstance(reply, BaseException)]
        if len(errors) == len(replies):
            raise errors[0]
        return replies

    def _log_cross_slot(self) -> None:
        if not self._cross_slot_logged:
            self._cross_slot_logged = True
            _log.warning(
                "redis_lock_cross_slot",
                reason="Redis is a cluster: a batch that needs several locks gets none",
            )


_CROSS_SLOT: Final = object()
_NO_REPLY: Final = object()


def _no_grant(token: str, wanted: Sequence[str], outcome: str) -> Grant:
    _absent.set(1)
    _keys.labels(outcome).inc(len(wanted))
    return Grant(token, frozenset(), frozenset())


def _read_taken(reply: object, wanted: int) -> list[bool | None] | None:
    """Whether each key was taken, None for _NO_REPLY; or None for _CROSS_SLOT.

    Raises UnexpectedReply.
    """
    if reply is _CROSS_SLOT:
        return None
    if not isinstance(reply, list) or len(reply) != wanted:
        raise UnexpectedReply
    # The type counts too: True == 1.
    if not all(each is _NO_REPLY or (type(each) is int and each in (0, 1)) for each in reply):
        raise UnexpectedReply
    return [None if each is _NO_REPLY else each == 1 for each in reply]


def _read_freed(reply: object, owned: int) -> int:
    """How many keys were freed. Raises UnexpectedReply."""
    if type(reply) is not int or not 0 <= reply <= owned:
        raise UnexpectedReply
    return reply
