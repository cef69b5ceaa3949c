"""A gateway at the wire: it returns the bytes that a test gives it, whole, cut or never.

The simulator behaves like Toss; this one misbehaves in ways that a well-written server cannot.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.time_limits import LONG_S

JSON_TYPE: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived; the names of headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes of a reply. The connection ends after them if they do not say where they end."""

    raw: bytes
    closes: bool = False
    endless: bool = False
    """The last byte is repeated until the client goes away."""


def reply(
    status: int,
    body: object = None,
    headers: Mapping[str, str] = JSON_TYPE,
    *,
    content: bytes = b"",
) -> Reply:
    """A whole reply with ``body`` as JSON, or with ``content``."""
    content = json.dumps(body).encode() if body is not None else content
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} Status", *lines, f"content-length: {len(content)}", "", ""]
    return Reply("\r\n".join(head).encode() + content)


LOST: Final = Reply(b"", closes=True)
"""The connection closes after the request, without a reply."""
CUT_IN_HEAD: Final = Reply(b"HTTP/1.1 200 OK\r\ncontent-ty", closes=True)
CUT_IN_BODY: Final = Reply(reply(200, {"a": 1}).raw[:-3], closes=True)
NOT_HTTP: Final = Reply(b"\x15\x03\x01\x00\x02\x02\x16", closes=True)
TRICKLE: Final = Reply(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n ", endless=True)
"""A body that never ends."""

Answer = Callable[[Request], Awaitable[Reply]]


@dataclass(slots=True)
class GatewayWire:
    """A running stand-in, and what it has seen."""

    answer: Answer
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    """Connections that were opened, in all."""
    open: int = 0
    """Connections that are open."""
    open_max: int = 0
    bytes_sent: int = 0
    pause_s: float = 0.0
    """Between two pieces of an endless body."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass  # The client is gone.
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read(reader)
        self.requests.append(request)
        answering = asyncio.ensure_future(self.answer(request))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return False  # The client went away, or sent what it must not send.
        finally:
            gone.cancel()
            answering.cancel()
            await asyncio.wait({gone, answering})
        returned = answering.result()
        writer.write(returned.raw)
        while returned.endless:
            await asyncio.sleep(self.pause_s)
            writer.write(returned.raw[-1:] * 4096)
            await writer.drain()
            self.bytes_sent += 4096
        await writer.drain()
        return not returned.closes

    async def until_open(self, count: int) -> None:
        """Wait until this many connections are open."""
        async with asyncio.timeout(LONG_S):
            while self.open != count:  # noqa: ASYNC110 - sockets close in callbacks
                await asyncio.sleep(0.002)

    def stop(self) -> None:
        """Refuse connections from now on."""
        assert self._server is not None
        self._server.close()

    def send(self, unasked: Reply) -> None:
        """Send on every connection what no request asked for."""
        for writer in self._writers:
            writer.write(unasked.raw)

    def drop_connections(self) -> None:
        """Close every connection, as a server that restarts does."""
        for writer in self._writers:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    named = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in named}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


async def hang(request: Request) -> Reply:
    """Never reply."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("not reached")


def in_turn(*replies: Reply) -> Answer:
    """These replies, each for one request."""
    left = iter(replies)

    async def answer(request: Request) -> Reply:
        return next(left)

    return answer


@asynccontextmanager
async def gateway_wire(
    answer: Answer, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[GatewayWire]:
    """A stand-in that answers with ``answer``, at ``port`` of 127.0.0.1 or at a free one."""
    wire = GatewayWire(answer)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", port, ssl=tls, backlog=2048)
    wire._server = server
    scheme = "http" if tls is None else "https"
    wire.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        wire.drop_connections()
        await wire.until_open(0)
