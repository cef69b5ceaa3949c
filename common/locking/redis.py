"""Calls to one Redis or Valkey, with a short time limit and a circuit breaker."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

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
    """Why Redis at ``url`` cannot be used now, in one line; '' if it can.

    Raises TypeError or ValueError for an option of the URL that the client rejects.
    """
    async with open_redis(url) as redis:
        redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            return "" if await redis.ping() is True else "what replies there is not Redis"
        except Exception as error:  # noqa: BLE001 - as in ``RedisCalls.call``
            return (str(error).strip() or type(error).__name__).splitlines()[0]


class RedisUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """Redis failed, sent no reply in time or none that fits, or its circuit is open."""


class UnexpectedReply(Exception):  # noqa: N818 - about the server, not about this code
    """A reply that is no error, and none that the command has."""


class Script:
    """A Lua script, sent by its digest, and whole to a server that does not have it."""

    def __init__(self, redis: Redis, text: str) -> None:
        self._redis = redis
        self._text = text
        # Not the server's answer to SCRIPT LOAD, as in the client's own class: it may be wrong.
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str], *arguments: str | int) -> object:
        """The reply, of whatever type."""
        try:
            return await self._redis.evalsha(self._digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._redis.eval(self._text, len(keys), *keys, *arguments)


class RedisCalls:
    """Calls behind a circuit breaker. Use it from tasks that are not cancelled (``open_redis``)."""

    def __init__(self, redis: Redis, event: str) -> None:
        """``event``: the log event of a failed call."""
        self._redis = redis
        self._event = event
        self._breaker = CircuitBreaker("redis", failures_max=FAILURES_MAX, open_s=OPEN_S)

    async def call(
        self, operation: str, send: Callable[[], Awaitable[object]], read: Callable[[object], T]
    ) -> T:
        """What ``read`` makes of the reply to one call. Raises RedisUnavailable, and nothing else.

        ``read`` raises UnexpectedReply for a reply that the call does not have.
        """
        try:
            async with self._breaker.call():
                if failpoints.enabled:
                    failpoints.hit(f"redis.{operation}.before", RedisConnectionError)
                result = read(await send())
                if failpoints.enabled:
                    failpoints.hit(f"redis.{operation}.after", RedisConnectionError)
                return result
        except CircuitOpen:
            raise RedisUnavailable from None
        except Exception as error:  # noqa: BLE001 - the client has no list of what a reply raises
            _log.warning(self._event, error=type(error).__name__)
            await self._disconnect()
            raise RedisUnavailable from None

    async def _disconnect(self) -> None:
        """Close the connections that are idle, the failed call's among them.

        The next call connects by the address. Behind a primary that was demoted, or that lost its
        slots, another server may be found there; and the replies of a connection that sent a wrong
        one may be those of other commands.
        """
        with suppress(Exception):
            await self._redis.connection_pool.disconnect(inuse_connections=False)
