"""The channel to one service, and the errors of a client that cannot use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc

from tally_client import policy
from tally_client.errors import TallyError
from tally_client.rpc.certificates import Certificates
from tally_client.rpc.channels import open_channel

Token = str | Callable[[], str]
"""A token, or what returns the one to send. It is asked before each attempt and must not block; an
empty text sends none."""
Target = str | Sequence[str]
"""``dns:///name:port``, ``host:port``, or a list of numeric ``ip:port``."""


class NotConnected(RuntimeError):  # noqa: N818 - a fact about how the client was created
    """The client was created without an address of this service."""


class ClientClosed(RuntimeError):  # noqa: N818 - a fact about the client's life
    """The call was made after the client was closed, and was not sent."""


class Connection:
    """A channel to all replicas of one service, used round robin.

    Create it in the running event loop, and use it in no other.
    """

    def __init__(
        self,
        name: str,
        target: Target | None,
        on_repeat: Callable[[TallyError], None] | None,
        token: Token | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """``on_repeat`` is called with an attempt's error before the call is sent again.

        Raises ValueError if ``target`` is malformed, or the certificates cannot be used.
        """
        self.name = name
        self.on_repeat = on_repeat
        self.closed = False
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._channel: grpc.aio.Channel | None = None
        if target is not None:
            addresses = target if isinstance(target, str) else ",".join(target)
            self._channel = open_channel(
                addresses, config=policy.CHANNEL, certificates=certificates
            )

    def channel(self) -> grpc.aio.Channel:
        """The open channel.

        Raises NotConnected, ClientClosed, or RuntimeError in an event loop other than the client's.
        """
        self._check_loop()
        if self._channel is None:
            raise NotConnected(f"this client has no address of the {self.name} service")
        if self.closed:
            raise ClientClosed("this client is closed")
        return self._channel

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What an attempt sends to say who calls."""
        token = self._token() if callable(self._token) else self._token
        return (("authorization", f"Bearer {token}"),) if token else ()

    async def close(self) -> None:
        """Close the channel; calls that are running on it end with NoAnswer."""
        self._check_loop()
        self.closed = True
        if self._channel is not None:
            await self._channel.close()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("use a client in the event loop in which it was created")
