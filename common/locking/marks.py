"""Marks in Redis or Valkey: a hint, for a while, that a request is in progress or done.

A mark is neither a lock nor the truth. A caller that finds one reads the database before it works;
what it reads there decides. A mark may therefore be lost, flushed or wrong without damage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from prometheus_client import Counter
from redis.asyncio import Redis, RedisCluster

from common.locking.redis import (
    RedisCalls,
    RedisUnavailable,
    Script,
    UnexpectedReply,
    open_redis,
)
from common.metrics import REGISTRY, from_zero

LIFE_MS: Final = 120_000
_IN_PROGRESS: Final = "IN_PROGRESS:"
_DONE: Final = "DONE:"

# One round trip, and repeatable: an owner that finds its own mark has set it.
_BEGIN: Final = """
local found = redis.call('GET', KEYS[1])
if not found then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
elseif found ~= ARGV[1] then
  return found
end
return false
"""
_CLEAR: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_marks = Counter(
    "tally_marks",
    "Marks asked for, by outcome: set, found or absent (Redis unavailable).",
    ("outcome",),
    registry=REGISTRY,
)
from_zero(_marks, ("set", "found", "absent"))


class InProgressMarks(Protocol):
    """Hints between replicas. No method raises or takes longer than Redis' time limit."""

    async def begin(self, key: str, owner: str) -> str | None:
        """Mark ``key`` as in progress. If another owner marked it, return that mark's text."""

    async def done(self, key: str, result: str) -> None:
        """Set the mark to ``DONE:<result>``."""

    async def clear(self, key: str, owner: str) -> None:
        """Delete the mark if it is the owner's own."""


class NoMarks:
    """Redis is not configured: no caller finds a mark."""

    async def begin(self, key: str, owner: str) -> str | None:  # noqa: ARG002
        return None

    async def done(self, key: str, result: str) -> None:
        pass

    async def clear(self, key: str, owner: str) -> None:
        pass


@asynccontextmanager
async def open_marks(url: str) -> AsyncIterator[InProgressMarks]:
    """Marks in the Redis at ``url``; an empty URL means none."""
    if not url:
        yield NoMarks()
        return
    async with open_redis(url) as redis:
        yield RedisMarks(redis)


class RedisMarks:
    """Marks in one Redis. Call it from tasks that are not cancelled (see ``open_redis``)."""

    def __init__(self, redis: Redis | RedisCluster) -> None:
        self._begin = Script(redis, _BEGIN)
        self._clear = Script(redis, _CLEAR)
        self._redis = redis
        self._calls = RedisCalls(redis, "redis_mark_absent")

    async def begin(self, key: str, owner: str) -> str | None:
        try:
            found = await self._calls.call(
                "begin_mark",
                lambda: self._begin([key], f"{_IN_PROGRESS}{owner}", LIFE_MS),
                _read_mark,
            )
        except RedisUnavailable:
            _marks.labels("absent").inc()
            return None
        _marks.labels("found" if found else "set").inc()
        return found

    async def done(self, key: str, result: str) -> None:
        with suppress(RedisUnavailable):
            await self._calls.call(
                "set_mark",
                lambda: self._redis.set(key, f"{_DONE}{result}", px=LIFE_MS),
                _read_set,
            )

    async def clear(self, key: str, owner: str) -> None:
        with suppress(RedisUnavailable):
            await self._calls.call(
                "clear_mark",
                lambda: self._clear([key], f"{_IN_PROGRESS}{owner}"),
                _read_cleared,
            )


def _read_mark(reply: object) -> str | None:
    """Another owner's mark; None if there was none. Raises UnexpectedReply."""
    if reply is None or (isinstance(reply, str) and reply.startswith((_IN_PROGRESS, _DONE))):
        return reply
    raise UnexpectedReply


def _read_set(reply: object) -> None:
    if reply is not True:
        raise UnexpectedReply


def _read_cleared(reply: object) -> None:
    if type(reply) is not int or reply not in (0, 1):
        raise UnexpectedReply
