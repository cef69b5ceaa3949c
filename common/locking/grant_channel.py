"""The channel on which releases are published to a process that waits for their keys."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from redis.asyncio import Redis, RedisCluster

from common.backoff import Backoff
from common.locking.redis import cluster_node, open_server

PING_S: Final = 0.5
"""Without data for this long, a PING is sent; without a reply for as long again, the connection is
closed. Meanwhile waiters repeat ENTER (``key_line.HEARTBEAT_S``)."""
CANCEL_AGAIN_S: Final = 0.05
_RECONNECT: Final = Backoff(0.01, 1.0)
_FORM: Final = re.compile(r"(\d+):(\d+):(\d+):(\d+)")

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Granted:
    """A message: the acquisition with this number owns a key."""

    number: int
    fence: int
    server_ms: int
    """When, by the server's clock."""
    lease_ms: int
    """From then on; that of the process which released the key."""

    @staticmethod
    def read(message: str) -> Granted | None:
        """None for a message of another form: anyone with access to Redis can publish."""
        parts = _FORM.fullmatch(message)
        if parts is None:
            return None
        with suppress(ValueError):
            return Granted(*map(int, parts.groups()))
        return None


class GrantChannel:
    """One subscription of the process, kept up until ``run`` is cancelled."""

    def __init__(
        self,
        open_connection: Callable[[], Redis],
        name: str,
        deliver: Callable[[str], None],
        wake_all: Callable[[], None],
    ) -> None:
        """``deliver`` gets each message on the channel ``name``. ``wake_all`` is called when it is
        subscribed (again): messages may have been missed."""
        self._open = open_connection
        self._name = name
        self._deliver = deliver
        self._wake_all = wake_all
        self.ready = False
        """Whether Redis has acknowledged the subscription. Only then may anyone queue."""

    async def run(self) -> None:
        """Subscribe, read, and subscribe again when the connection is lost."""
        attempt = 0
        while True:
            try:
                async with self._open() as redis:
                    await self._subscribe(redis)
            except Exception as error:  # noqa: BLE001 - the client has no list of what it raises
                if self.ready or not attempt:
                    _log.info("lock_channel_lost", error=type(error).__name__)
            attempt = 1 if self.ready else attempt + 1
            self.ready = False
            await asyncio.sleep(_RECONNECT.pause_s(attempt))

    async def _subscribe(self, redis: Redis) -> None:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(self._name)
            asked = False
            while True:
                message = await pubsub.get_message(timeout=PING_S)
                if message is None:
                    if asked:
                        return
                    await _within(PING_S, pubsub.ping())
                asked = message is None
                if message is not None:
                    self._read(message)

    def _read(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self.ready = True
            self._wake_all()
        elif message["type"] == "message":
            self._deliver(str(message["data"]))


class ClusterChannels:
    """A subscription on each primary of a cluster, since each one counts its own subscribers only.

    The nodes pass messages on to each other, so that one arrives several times, and a copy may be
    late. A grant is for a number that is used once. A late copy of a lane's message may end a wait
    for the key's next owner: then the command asks again.
    """

    def __init__(
        self,
        cluster: RedisCluster,
        open_node: Callable[[str, int], Redis],
        channel: Callable[[Callable[[], Redis]], GrantChannel],
    ) -> None:
        self._cluster = cluster
        self._open_node = open_node
        self._channel = channel
        self._channels: dict[tuple[str, int], tuple[GrantChannel, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Of nodes that are primaries no more."""

    @property
    def ready(self) -> bool:
        """Whether all primaries have acknowledged their subscription."""
        channels = self._channels.values()
        return bool(channels) and all(channel.ready for channel, _ in channels)

    async def run(self) -> None:
        """Subscribe where the cluster's primaries are, until it is cancelled."""
        try:
            while True:
                with suppress(Exception):  # the locks' own calls log it
                    await self._cluster.initialize()
                primaries = self._cluster.get_primaries()
                self._follow({(node.host, int(node.port)) for node in primaries})
                await asyncio.sleep(PING_S)
        finally:
            self._follow(set())
            while self._ending:
                # Who ends this task cancels it several times (``ended``).
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(self._ending)

    def _follow(self, primaries: set[tuple[str, int]]) -> None:
        for place in primaries - self._channels.keys():
            channel = self._channel(partial(self._open_node, *place))
            self._channels[place] = channel, asyncio.create_task(channel.run())
        for place in self._channels.keys() - primaries:
            ending = asyncio.create_task(ended(self._channels.pop(place)[1]))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


@asynccontextmanager
async def open_channel(
    redis: Redis | RedisCluster,
    url: str,
    name: str,
    deliver: Callable[[str], None],
    wake_all: Callable[[], None],
) -> AsyncIterator[GrantChannel | ClusterChannels]:
    """The channel ``name`` of the Redis at ``url``, whose client is ``redis``, while it is read.

    ``deliver`` and ``wake_all`` are those of ``GrantChannel``.
    """

    def on(opened: Callable[[], Redis]) -> GrantChannel:
        return GrantChannel(opened, name, deliver, wake_all)

    channel: GrantChannel | ClusterChannels
    if isinstance(redis, RedisCluster):
        channel = ClusterChannels(redis, partial(cluster_node, url), on)
    else:
        channel = on(partial(open_server, url))
    reading = asyncio.create_task(channel.run())
    try:
        yield channel
    finally:
        await ended(reading)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel the task until it has ended: the client library can miss a cancellation.

    It awaits with ``asyncio.wait_for``, which in Python 3.11 returns a result that arrives together
    with the cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)


async def _within(limit_s: float, sending: Awaitable[object]) -> None:
    async with asyncio.timeout(limit_s):
        await sending
