"""Calls to one Redis or Valkey, with a short time limit and a circuit breaker."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, Final, TypeVar

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.maint_notifications import MaintNotificationsConfig

from common import failpoints
from common.breaker import CircuitBreaker, CircuitOpen
from common.urls import RedisNodes, redis_nodes

T = TypeVar("T")

TIMEOUT_S: Final = 0.1
FAILURES_MAX: Final = 3
OPEN_S: Final = 2.0
CONNECTIONS_MAX: Final = 100
"""Of a client to each server, unless its URL says another number."""
CALLS_MAX: Final = 64
"""Calls at once; more wait for their turn. The client fails a call that would need one connection
too many, which would open the circuit of a Redis that is well."""

_log = structlog.stdlib.get_logger()


def open_redis(url: str, *, timeout_s: float | None = None) -> Redis | RedisCluster:
    """A client that gives up fast and never sends a command twice on its own.

    ``url``: one server, Sentinels that know the primary, or some nodes of a cluster
    (``common.urls``). The client library finds the server; a redirected command was not executed.
    ``timeout_s``: of each command; None: TIMEOUT_S.

    A script repeated after a lost reply would find the locks of its own first run. A command in
    flight is ended by the client's own time limit, which also closes the connection, and by nothing
    else: a cancelled command has handed its reply to the next caller before (redis-py #2624 and
    #2665).
    """
    nodes = redis_nodes(url)
    if nodes is None or nodes.service:
        return open_server(url, timeout_s=timeout_s)
    startup = [ClusterNode(host, port, **_credentials(nodes)) for host, port in nodes.addresses]
    return _Cluster(startup_nodes=startup, **_credentials(nodes), **_options(timeout_s))


def open_server(url: str, *, timeout_s: float | None = None) -> Redis:
    """A client of the one server at ``url``, or of the primary that Sentinels name."""
    nodes = redis_nodes(url)
    if nodes is None:
        return Redis.from_url(url, **_options(timeout_s))
    sentinel = Sentinel(list(nodes.addresses), sentinel_kwargs={**_tls(nodes), **_options()})  # type: ignore[no-untyped-call]
    primary: Redis = sentinel.master_for(
        nodes.service, _Primary, db=nodes.database, **_credentials(nodes), **_options(timeout_s)
    )
    return primary


class _Primary(Redis):
    """The primary that Sentinels name. It closes its connections to them too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for sentinel in self.sentinels:
            await sentinel.aclose()

    @property
    def sentinels(self) -> list[Redis]:
        """A client of each Sentinel."""
        pool = self.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        found: list[Redis] = pool.sentinel_manager.sentinels
        return found


def cluster_node(url: str, host: str, port: int) -> Redis:
    """A client of one node of the cluster at ``url``."""
    nodes = redis_nodes(url)
    assert nodes is not None
    return Redis(host=host, port=port, **_credentials(nodes), **_options())


class _Cluster(RedisCluster):
    """A cluster. It closes its nodes too if a failed command has just made it forget them."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")


def slot_of(key: str) -> int:
    """The slot of the key in a cluster."""
    return key_slot(key.encode())


def _options(timeout_s: float | None = None) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s or TIMEOUT_S,
        "socket_connect_timeout": timeout_s or TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
        "max_connections": CONNECTIONS_MAX,
        # If they may arrive, the client uses a connection on which data waits: a doubled reply.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _credentials(nodes: RedisNodes) -> dict[str, Any]:
    return {"username": nodes.user, "password": nodes.password, **_tls(nodes)}


def _tls(nodes: RedisNodes) -> dict[str, Any]:
    return {"ssl": True, "ssl_ca_certs": nodes.authorities} if nodes.tls else {"ssl": False}


async def connection_problem(url: str) -> str:
    """Why Redis at ``url`` cannot be used now, in one line; '' if it can.

    Raises TypeError or ValueError for an option of the URL that the client rejects.
    """
    async with open_redis(url) as redis:
        if isinstance(redis, Redis):
            redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        problem = await _problem(redis)
        if problem and isinstance(redis, _Primary):
            # If no Sentinel could be asked, the client does not say why.
            of_sentinels = [await _problem(each) for each in redis.sentinels]
            return of_sentinels[0] if all(of_sentinels) else problem
        return problem


async def _problem(redis: Redis | RedisCluster) -> str:
    try:
        return "" if await redis.ping() is True else "what replies there is not Redis"
    except Exception as error:  # noqa: BLE001 - as in ``RedisCalls.call``
        return (str(error).strip() or type(error).__name__).splitlines()[0]


async def eviction_policies(redis: Redis | RedisCluster) -> set[str]:
    """What the server, or each primary of a cluster, does when its memory is full.

    Raises what the client raises.
    """
    if isinstance(redis, RedisCluster):
        by_node = await redis.info("memory", target_nodes=RedisCluster.PRIMARIES)
        # Of one node, the client returns its reply alone.
        replies = [by_node] if "maxmemory_policy" in by_node else list(by_node.values())
    else:
        replies = [await redis.info("memory")]
    return {str(reply["maxmemory_policy"]) for reply in replies}


class RedisUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """Redis failed, sent no reply in time or none that fits, or its circuit is open."""


class NotSent(RedisUnavailable):
    """The circuit is open: the call was not made, and changed nothing."""


class UnexpectedReply(Exception):  # noqa: N818 - about the server, not about this code
    """A reply that is no error, and none that the command has."""


class Script:
    """A Lua script, sent by its digest, and whole to a server that does not have it."""

    def __init__(self, redis: Redis | RedisCluster, text: str) -> None:
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


def _calls_max(redis: Redis | RedisCluster) -> int:
    if isinstance(redis, RedisCluster):
        return CALLS_MAX
    return min(CALLS_MAX, redis.connection_pool.max_connections)


class RedisCalls:
    """Calls behind a circuit breaker. Use it from tasks that are not cancelled (``open_redis``)."""

    def __init__(self, redis: Redis | RedisCluster, event: str) -> None:
        """``event``: the log event of a failed call, ``<circuit>_absent``."""
        self._redis = redis
        self._event = event
        self._breaker = CircuitBreaker(
            event.removesuffix("_absent"), failures_max=FAILURES_MAX, open_s=OPEN_S
        )
        self._turns = asyncio.Semaphore(_calls_max(redis))

    @property
    def refuses(self) -> bool:
        """Whether a call would not be made now: the circuit is open."""
        return self._breaker.refuses

    async def call(
        self,
        operation: str,
        send: Callable[[], Awaitable[object]],
        read: Callable[[object], T],
        *,
        bypass: bool = False,
    ) -> T:
        """What ``read`` makes of the reply to one call. Raises RedisUnavailable, and nothing else.

        ``read`` raises UnexpectedReply for a reply that the call does not have. ``bypass``: send it
        while the circuit is open too, and do not count its outcome. For calls about a lock that is
        held: a circuit that stays open as long as a lease would end every lock of the process.
        """
        circuit: AbstractAsyncContextManager[None] = self._breaker.call()
        if bypass:
            circuit = nullcontext()
        try:
            async with self._turns, circuit:
                if failpoints.enabled:
                    failpoints.hit(f"redis.{operation}.before", RedisConnectionError)
                result = read(await send())
                if failpoints.enabled:
                    failpoints.hit(f"redis.{operation}.after", RedisConnectionError)
                return result
        except CircuitOpen:
            raise NotSent from None
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
            if isinstance(self._redis, RedisCluster):
                nodes = self._redis.get_nodes()
                await asyncio.gather(*(node.disconnect_free_connections() for node in nodes))
                return
            await self._redis.connection_pool.disconnect(inuse_connections=False)
