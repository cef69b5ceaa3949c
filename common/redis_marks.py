"""Marks in Redis or Valkey: a hint, for a while, that something is under way or done.

A mark is no lock and no truth. Whoever finds one has reason to look before working; what he sees
in the database decides. So a mark may be lost, flushed, or a lie, and nothing goes wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import structlog
from prometheus_client import Counter
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from common.metrics import REGISTRY
from common.redis_library import Redis, RedisError
from common.redis_locks import FAILURES_MAX, RETRY_AFTER_S, open_redis

LIFE_MS: Final = 120_000

# In one round trip, and repeatable: whoever finds his own mark is the one who set it.
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

_calls = Counter(
    "tally_marks",
    "Marks asked for, by what came of it: set, found or absent (Redis away).",
    ("outcome",),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


class Marks(Protocol):
    """Hints between replicas. No method raises or takes longer than Redis' time limit."""

    async def begin(self, key: str, owner: str) -> str | None:
        """Mark ``key`` as in progress, unless it is marked: then return what the mark says."""

    async def done(self, key: str, result: str) -> None:
        """Let the mark say ``DONE:<result>`` from now on."""

    async def clear(self, key: str, owner: str) -> None:
        """Take the owner's own mark away again."""


class NoMarks:
    """Redis is not configured: nobody is ever sent to look."""

    async def begin(self, key: str, owner: str) -> str | None:  # noqa: ARG002
        return None

    async def done(self, key: str, result: str) -> None:
        pass

    async def clear(self, key: str, owner: str) -> None:
        pass


@asynccontextmanager
async def open_marks(url: str) -> AsyncIterator[Marks]:
    """Marks at ``url``; an empty one means there are none."""
    if not url:
        yield NoMarks()
        return
    redis = open_redis(url)
    try:
        yield RedisMarks(redis)
    finally:
        await redis.aclose()


class RedisMarks:
    """Marks in one Redis. Call it from tasks that are not cancelled (see ``open_redis``)."""

    def __init__(self, redis: Redis) -> None:
        self._begin = redis.register_script(_BEGIN)
        self._clear = redis.register_script(_CLEAR)
        self._redis = redis
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=FAILURES_MAX, default_ttl=RETRY_AFTER_S
        )

    async def begin(self, key: str, owner: str) -> str | None:
        """Mark ``key`` as in progress, unless it is marked: then return what the mark says."""
        reached, found = await self._call(
            lambda: self._begin(keys=[key], args=[f"IN_PROGRESS:{owner}", LIFE_MS])
        )
        _calls.labels("absent" if not reached else "found" if found else "set").inc()
        return str(found) if found else None

    async def done(self, key: str, result: str) -> None:
        """Let the mark say ``DONE:<result>`` from now on."""
        await self._call(lambda: self._redis.set(key, f"DONE:{result}", px=LIFE_MS))

    async def clear(self, key: str, owner: str) -> None:
        """Take the owner's own mark away again."""
        await self._call(lambda: self._clear(keys=[key], args=[f"IN_PROGRESS:{owner}"]))

    async def _call(self, send: Any) -> tuple[bool, Any]:
        breaker = await self._breakers.get_breaker("redis")
        try:
            async with breaker:
                return True, await send()
        except OpenedState as opened:
            # One and the same exception every time: its traceback would grow with each call.
            opened.__traceback__ = None
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("redis_mark_absent", error=type(error).__name__)
        return False, None
