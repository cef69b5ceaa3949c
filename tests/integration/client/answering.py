"""A server of real methods that answer what a test hands them, and a way to it that can break."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from common.errors import Refusal
from common.rpc.server import GrpcServer
from tests.integration.common.echo import always_ready, settings


@dataclass
class Received:
    """What arrived, by the method's name."""

    requests: dict[str, list[Any]] = field(default_factory=dict)
    left_s: dict[str, list[float | None]] = field(default_factory=dict)
    """What each call's deadline had left when it arrived."""
    attempts: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, request: Any, context: Any) -> None:
        self.attempts[name] += 1
        self.requests.setdefault(name, []).append(request)
        self.left_s.setdefault(name, []).append(context.time_remaining())


@asynccontextmanager
async def answering(
    received: Received, *answers: tuple[MethodDescriptor, Callable[[Any], Any]]
) -> AsyncIterator[str]:
    """A server of these methods; yields its address.

    An answer is called with the request: a coroutine function, or for a stream an asynchronous
    generator function.
    """
    server = GrpcServer(settings(grace_s=0.5), ready=always_ready)
    by_service: dict[str, dict[str, Any]] = {}
    for method, answer in answers:
        handlers = by_service.setdefault(method.containing_service.full_name, {})
        handlers[method.name] = _handler(method, answer, received)
    for service, handlers in by_service.items():

        def add(methods: Any, mounting: Any, name: str = service) -> None:
            mounting.add_registered_method_handlers(name, methods)

        server.mount(add, handlers, service)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain()


def _handler(method: MethodDescriptor, answer: Callable[[Any], Any], received: Received) -> Any:
    async def unary(request: Any, context: Any) -> Any:
        received.note(method.name, request, context)
        return await answer(request)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        received.note(method.name, request, context)
        async for response in answer(request):
            yield response

    coding: Any = {
        "request_deserializer": GetMessageClass(method.input_type).FromString,
        "response_serializer": GetMessageClass(method.output_type).SerializeToString,
    }
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, **coding)
    return grpc.unary_unary_rpc_method_handler(unary, **coding)


def failing(first: int, refusal: Callable[[], Refusal], answer: Any) -> Callable[[Any], Any]:
    """The first calls are refused; then comes the answer."""
    calls = 0

    async def behave(_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= first:
            raise refusal()
        return answer

    return behave


class Wire:
    """A TCP connection to a server that a test can cut, as a dying replica does."""

    def __init__(self) -> None:
        self.address = ""
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Every connection that is open now ends without a word."""
        for writer in self._writers:
            writer.transport.abort()

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str) -> AsyncIterator[Wire]:
        wire = cls()
        host, _, port = address.rpartition(":")

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire.connections += 1
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            ends = {writer, there_writer}
            wire._writers |= ends
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
            wire._writers -= ends

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            listening = server.sockets[0].getsockname()
            wire.address = f"127.0.0.1:{listening[1]}"
            yield wire
        finally:
            server.close()
            wire.cut()
            await asyncio.sleep(0)
