"""A channel that is replaced when its certificates change.

gRPC cannot change the certificates of a channel. So a new channel is opened with the new ones, and
once it has reached a server, calls go there. The old one ends when its last call has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc

from tally_client.rpc.certificates import Certificates, Pems

REFRESH_S: Final = 10.0
"""Time between two reads of the files."""
READY_S: Final = 10.0
"""How long a new channel may take to reach a server. If it does not, calls stay on the old one, and
the next read tries again."""
DRAIN_S: Final = 90_000.0
"""How long the calls of an old channel may still run: longer than the oldest connection that a
server of Tally keeps. So no call is cut off by its own side."""

_log = logging.getLogger("tally_client")


class RotatingChannel:
    """A channel as a generated stub uses it. Create it in the running event loop."""

    def __init__(
        self,
        open_: Callable[[grpc.ChannelCredentials], grpc.aio.Channel],
        certificates: Certificates,
    ) -> None:
        """``open_`` opens a channel, which connects at once. Raises ValueError for the files."""
        self._open = open_
        self._certificates = certificates
        self._pems = certificates.read()
        self._problem = ""
        self.current = open_(self._pems.credentials())
        """The channel that new calls use."""
        self._draining: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._following = asyncio.create_task(self._follow(), name="certificates")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        return _Method(self, lambda channel: channel.unary_unary(method, *args, **options))

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        return _Method(self, lambda channel: channel.unary_stream(method, *args, **options))

    async def close(self, grace: float | None = None) -> None:
        """Close the channel, and those that drain."""
        tasks = [self._following, *self._draining]
        channels = [self.current, *self._draining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close(grace) for channel in channels))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                pems = await asyncio.to_thread(self._certificates.read)
                if pems != self._pems:
                    await self._replace(pems)
            except TimeoutError:
                self._note("no server was reached with the new certificates")
            except Exception as error:  # noqa: BLE001 - without this task the certificate expires
                self._note(str(error) or repr(error))
            else:
                self._note("")

    async def _replace(self, pems: Pems) -> None:
        """Raises TimeoutError, and changes nothing, if no server is reached with these."""
        channel = self._open(pems.credentials())
        try:
            async with asyncio.timeout(READY_S):
                await channel.channel_ready()
        except BaseException:
            await channel.close()
            raise
        old, self.current, self._pems = self.current, channel, pems
        task = asyncio.create_task(old.close(DRAIN_S))
        self._draining[task] = old
        task.add_done_callback(self._draining.pop)
        _log.info("calls use the new certificates")

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("the certificates that were read before stay in use: %s", problem)
        self._problem = problem


class _Method:
    """A method on whichever channel is current when it is called."""

    def __init__(
        self, owner: RotatingChannel, create: Callable[[grpc.aio.Channel], Callable[..., Any]]
    ) -> None:
        self._owner = owner
        self._create = create
        self._channel: grpc.aio.Channel | None = None
        self._call: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        channel = self._owner.current
        if self._call is None or channel is not self._channel:
            self._channel, self._call = channel, self._create(channel)
        return self._call(*args, **options)
