"""Calls to one Redis or Valkey, with a short time limit and a circuit breaker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from common import failpoints
from common.breaker import CircuitBreaker, CircuitOpen

T = TypeVar("T")

TIMEOUT_S: Final = 0.1
FAILURES_MAX: Final = 3
OPEN_S: Final = 2.0

_log = structlog.stdlib.get_logger()


def open_redis(url: str) -> Redis:
    """A client that gives up fast and never sends a command twice on its own.

    A script repeated after a lost reply would find the locks of its own first run. A command in
    flight is ended by the client's own time limit, which also closes the connection, and by nothing
    else: a cancelled command has handed its reply to the next caller before (redis-py #2624 and
    #2665).
    """
    return Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


async def connection_problem(url: str) -> str:
    """Why Redis at ``url`` cannot be used now, in one line; '' if it can."""
    async with open_redis(url) as redis:
        try:
            await redis.ping()
        except (RedisError, OSError, TimeoutError) as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


class RedisUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """Redis failed, did not answer in time, or its circuit is open."""


class RedisCalls:
    """Calls behind a circuit breaker. Use it from tasks that are not cancelled (``open_redis``)."""

    def __init__(self, event: str) -> None:
        """``event``: the log event of a failed call."""
        self._event = event
        self._breaker = CircuitBreaker("redis", failures_max=FAILURES_MAX, open_s=OPEN_S)

    async def call(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """The reply to one call. Raises RedisUnavailable."""
        try:
            async with self._breaker.call():
                if failpoints.enabled:
                    failpoints.hit(f"redis.{operation}.before", RedisConnectionError)
                reply = await send()
                if failpoints.enabled:
                    failpoints.hit(f"redis.{operation}.after", RedisConnectionError)
                return reply
        except CircuitOpen:
            raise RedisUnavailable from None
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning(self._event, error=type(error).__name__)
            raise RedisUnavailable from None
