"""The two clients of the load generator, with one interface.

At many callers the cheap one (``http2``) is used, so that the server is what is measured. At one
caller, and at a fixed rate below the top, it is grpc.aio's own channel: its latency is what a
caller sees, and its processor time is in nobody's way.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from benchmarks.load.http2 import CallError, Connection

Kind: TypeAlias = Literal["grpc", "http2"]
Unary: TypeAlias = Callable[[str, bytes], Awaitable[bytes]]
"""Calls a method, given its full name and the request's bytes. Raises CallError."""
Response = TypeVar("Response", bound=Message)


class Clients:
    """One connection to each replica of each server; calls go to the replicas in turn."""

    def __init__(self, unary: Mapping[str, Sequence[Unary]]) -> None:
        self._next = {server: itertools.cycle(calls) for server, calls in unary.items()}

    def call(self, server: str, method: str, request: bytes) -> Awaitable[bytes]:
        return next(self._next[server])(method, request)

    async def ask(
        self, server: str, method: str, request: Message, response: type[Response]
    ) -> Response:
        """The response as a message."""
        return response.FromString(await self.call(server, method, request.SerializeToString()))


@asynccontextmanager
async def clients(kind: Kind, addresses: Mapping[str, Sequence[str]]) -> AsyncIterator[Clients]:
    """Connections to all servers, which are closed at the end of the block."""
    async with AsyncExitStack() as stack:
        unary: dict[str, list[Unary]] = {}
        for server, replicas in addresses.items():
            unary[server] = [await _connect(kind, address, stack) for address in replicas]
        yield Clients(unary)


async def _connect(kind: Kind, address: str, stack: AsyncExitStack) -> Unary:
    if kind == "http2":
        connection = await Connection.open(address)
        stack.callback(connection.close)
        return connection.call
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    await channel.channel_ready()
    methods: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}

    async def call(method: str, request: bytes) -> bytes:
        if (bound := methods.get(method)) is None:
            multicallable: Any = channel.unary_unary(method)
            bound = methods[method] = multicallable
        try:
            return await bound(request)
        except grpc.aio.AioRpcError as error:
            raise CallError(int(error.code().value[0]), error.details() or "") from error

    return call
