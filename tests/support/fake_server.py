"""A server whose methods return what a test gives them, and a connection that can break."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor

from common.errors import Code, Refusal, RemoteRefusal
from common.rpc.server import GrpcServer
from tally_client import Tally, TallyError
from tests.integration.common.echo import always_ready, settings
from tests.support.contract import METHODS_BY_NAME, message_class

HANG: Final = object()
"""An outcome that never comes."""
_NO_MESSAGE: Final = b"\xff\xff\xff"
Answer = Callable[[Any], Any] | Sequence[Any]
"""The outcomes of a method's calls, of which the last stays: each a response, an exception or HANG;
for a stream a list of them. Or a coroutine function, for a stream an asynchronous generator."""


@dataclass
class Received:
    """The calls that arrived, by the method's name."""

    requests: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    left_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The time to each call's deadline when it arrived."""
    metadata: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    attempts: Counter[str] = field(default_factory=Counter)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a call arrives."""

    def record(self, name: str, request: Any, context: Any) -> None:
        self.attempts[name] += 1
        self.requests[name].append(request)
        self.left_s[name].append(context.time_remaining())
        self.metadata[name].append(dict(context.invocation_metadata()))
        self.arrived.set()


def refusal(code: str, reason: str, *, retry_after_s: float | None = 0.01) -> Refusal:
    """A refusal as a service would return it; its RetryInfo is short, so that tests are."""
    return RemoteRefusal(Code(code), reason, "No.", {}, retry_after_s=retry_after_s)


@asynccontextmanager
async def fake_server(
    received: Received, replica: str = "one", /, **answers: Answer
) -> AsyncIterator[str]:
    """A server of these methods, by their names; yields its address."""
    server = GrpcServer(settings(grace_s=0.5, replica=replica), ready=always_ready)
    services: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, answer in answers.items():
        method = METHODS_BY_NAME[name]
        handler = _handler(method, answer, received)
        services[method.containing_service.full_name][name] = handler
    for service, handlers in services.items():

        def add(methods: Any, mounting: Any, service: str = service) -> None:
            mounting.add_registered_method_handlers(service, methods)

        server.mount(add, handlers)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain()


@asynccontextmanager
async def garbled_server() -> AsyncIterator[str]:
    """A server that replies OK to every call, with bytes that are no message; its address."""

    class Garbled(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if "grpc.health" in details.method:
                return None  # unimplemented, as of a server that has no health
            method = METHODS_BY_NAME.get(details.method.rpartition("/")[2])
            if method is not None and method.server_streaming:
                return grpc.unary_stream_rpc_method_handler(_garbled_stream)
            return grpc.unary_unary_rpc_method_handler(_garbled)

    server = grpc.aio.server(handlers=(Garbled(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def _garbled(request: bytes, context: Any) -> bytes:
    return _NO_MESSAGE


async def _garbled_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield _NO_MESSAGE


@asynccontextmanager
async def fake_tally(
    *, on_repeat: Callable[[TallyError], None] | None = None, **answers: Answer
) -> AsyncIterator[tuple[Tally, Received]]:
    """A client of a fake server, and what the server received."""
    received = Received()
    async with (
        fake_server(received, **answers) as address,
        Tally(balance=address, order=address, on_repeat=on_repeat) as tally,
    ):
        yield tally, received


def _handler(method: MethodDescriptor, answer: Answer, received: Received) -> Any:
    left = [] if callable(answer) else list(answer)

    def next_outcome() -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    async def unary(request: Any, context: Any) -> Any:
        received.record(method.name, request, context)
        return await (answer(request) if callable(answer) else _result(next_outcome()))

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        received.record(method.name, request, context)
        if callable(answer):
            async for response in answer(request):
                yield response
        else:
            for outcome in next_outcome():
                yield await _result(outcome)

    coding: Any = {
        "request_deserializer": message_class(method.input_type).FromString,
        "response_serializer": message_class(method.output_type).SerializeToString,
    }
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, **coding)
    return grpc.unary_unary_rpc_method_handler(unary, **coding)


async def _result(outcome: Any) -> Any:
    if outcome is HANG:
        await asyncio.Event().wait()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


_ITERATIONS_TO_ACCEPT = 5


@contextmanager
def _aborted(writer: asyncio.StreamWriter) -> Iterator[None]:
    """Abort the connection at the end, however the block ends."""
    try:
        yield
    finally:
        writer.transport.abort()


@dataclass
class _Flow:
    """One connection through a proxy."""

    to_client: asyncio.StreamWriter
    used_s: float = field(default_factory=time.monotonic)
    forgotten: bool = False


class TcpProxy:
    """A TCP proxy before a server, which can die or hang as the server would.

    It can also forget connections, as NATs and firewalls do: what is sent over one is lost then,
    and neither side learns of it.
    """

    def __init__(self) -> None:
        self.address = ""
        self.target = ""
        """The server of new connections; those that are open keep theirs."""
        self.forwards = asyncio.Event()
        """Clear it, and connections stay open and silent until it is set."""
        self.forwards.set()
        self.forgets_after_s = math.inf
        """The time without data after which a connection is forgotten."""
        self.flows: list[_Flow] = []
        """Every connection so far."""
        self._writers: set[asyncio.StreamWriter] = set()

    async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
        """Await this before forwarding what was received. Raises ConnectionError to cut."""
        await self.forwards.wait()

    def cut(self) -> None:
        """Abort every open connection."""
        for writer in self._writers:
            writer.transport.abort()

    def forget(self) -> None:
        """Forget every open connection."""
        for flow in self.flows:
            flow.forgotten = True

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str, port: int = 0) -> AsyncIterator[Self]:
        """A proxy to ``address``, listening at its own ``address``."""
        proxy = cls()
        proxy.target = address

        async def pump(
            flow: _Flow,
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            before: Callable[[bytes], Awaitable[None]],
        ) -> None:
            try:
                while data := await reader.read(65_536):
                    await before(data)
                    idle_s = time.monotonic() - flow.used_s
                    flow.used_s += idle_s
                    flow.forgotten |= idle_s > proxy.forgets_after_s
                    if flow.forgotten:
                        continue
                    writer.write(data)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = asyncio.current_task()
            assert connection is not None
            connections.add(connection)
            proxy._writers.add(writer)
            # Only the end of the proxy cancels it, and asyncio reports that as an error.
            with suppress(asyncio.CancelledError, ConnectionError), _aborted(writer):
                if not server.is_serving():
                    return  # accepted while the proxy ended
                proxy.flows.append(flow := _Flow(writer))
                host, _, server_port = proxy.target.rpartition(":")
                server_reader, server_writer = await asyncio.open_connection(host, int(server_port))
                proxy._writers.add(server_writer)
                with _aborted(server_writer):
                    before = partial(proxy.before, connection=connection)
                    await asyncio.gather(
                        pump(flow, reader, server_writer, partial(before, to_client=False)),
                        pump(flow, server_reader, writer, partial(before, to_client=True)),
                    )
                proxy._writers -= {writer, server_writer}

        connections: set[asyncio.Task[Any]] = set()
        server = await asyncio.start_server(connected, "127.0.0.1", port)
        try:
            listening = server.sockets[0].getsockname()
            proxy.address = f"127.0.0.1:{listening[1]}"
            yield proxy
        finally:
            server.close()
            proxy.cut()
            # Also those that still wait for the server.
            for each in connections:
                each.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            # What the loop has just accepted becomes a connection some iterations later.
            for _ in range(_ITERATIONS_TO_ACCEPT):
                await asyncio.sleep(0)
