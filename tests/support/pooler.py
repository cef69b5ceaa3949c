"""A stand-in at the wire for a pooler such as PgBouncer: what it does to a session's start.

``make test-pooler`` runs the same guarantees through the real PgBouncer.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy.engine import make_url

KNOWN: Final = frozenset(
    ("user", "database", "application_name", "client_encoding", "datestyle", "timezone")
)
"""The startup parameters that PgBouncer passes on, in lower case."""
_PROTOCOL_3: Final = 196_608
_CANCEL: Final = 80_877_102
_PID_OFFSET: Final = 100_000_000
"""A pooler sends a process id of its own: the server's changes with each transaction."""


@dataclass
class Pooler:
    """A proxy that refuses unknown startup parameters, or drops them."""

    server: tuple[str, int]
    refuses: bool
    renames: bool
    """Whether it keeps prepared statements, for which it gives them names of its own."""
    port: int = 0
    unknown: set[str] = field(default_factory=set)
    """The parameters that it has dropped or refused."""

    def url(self, url: str) -> str:
        """The URL of a database by way of this pooler."""
        through = make_url(url).set(host="127.0.0.1", port=self.port)
        return through.render_as_string(hide_password=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        code, body = await _first_message(reader)
        while code not in {_PROTOCOL_3, _CANCEL}:
            writer.write(b"N")  # no TLS
            code, body = await _first_message(reader)
        server_reader, server_writer = await asyncio.open_connection(*self.server)
        try:
            if code == _CANCEL:
                pid, secret = struct.unpack("!i", body[:4])[0], body[4:]
                body = struct.pack("!i", pid - _PID_OFFSET) + secret
            else:
                body, unknown = _split(body)
                self.unknown |= unknown
                if unknown and self.refuses:
                    writer.write(_error(f"unsupported startup parameter: {min(unknown)}"))
                    return
            server_writer.write(struct.pack("!ii", len(body) + 8, code) + body)
            requests = _pump_renamed if self.renames else _pump
            await _until_one_ends(
                requests(reader, server_writer), _pump_replies(server_reader, writer)
            )
        finally:
            server_writer.transport.abort()


@asynccontextmanager
async def pooler(url: str, *, refuses: bool = False, renames: bool = True) -> AsyncIterator[Pooler]:
    """A pooler in front of the server of ``url``."""
    address = make_url(url)
    assert address.host is not None and address.port is not None
    running = Pooler((address.host, address.port), refuses, renames)
    connections: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            # Only the end of the pooler cancels it, and asyncio reports that as an error.
            with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
                await running.serve(reader, writer)
                await writer.drain()
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _first_message(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The code and the body of a message without a type."""
    length, code = struct.unpack("!ii", await reader.readexactly(8))
    return code, await reader.readexactly(length - 8)


def _split(body: bytes) -> tuple[bytes, set[str]]:
    """The startup parameters that are known, and the names of the others."""
    words = body.rstrip(b"\0").split(b"\0")
    pairs = list(zip(words[::2], words[1::2], strict=True))
    known = [(name, value) for name, value in pairs if name.decode().lower() in KNOWN]
    unknown = {name.decode() for name, _ in pairs} - {name.decode() for name, _ in known}
    return b"".join(name + b"\0" + value + b"\0" for name, value in known) + b"\0", unknown


def _error(text: str) -> bytes:
    fields = f"SFATAL\0VFATAL\0C08P01\0M{text}\0\0".encode()
    return b"E" + struct.pack("!i", len(fields) + 4) + fields


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def _pump_renamed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The client's messages, with other names of prepared statements."""
    while True:
        kind, length = struct.unpack("!ci", await reader.readexactly(5))
        body = await reader.readexactly(length - 4)
        # Parse begins with the name; before it are Bind's portal, and the S of Describe and Close.
        start = {b"P": 0, b"B": body.find(b"\0") + 1}.get(kind, 1 if body[:1] == b"S" else -1)
        if kind in b"PBDC" and start >= 0 and body[start : start + 1] != b"\0":
            body = body[:start] + b"pooled_" + body[start:]
        writer.write(kind + struct.pack("!i", len(body) + 4) + body)
        await writer.drain()


async def _pump_replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server's messages, with another process id in BackendKeyData."""
    kind = b""
    while kind != b"K":
        kind, length = struct.unpack("!ci", await reader.readexactly(5))
        body = await reader.readexactly(length - 4)
        if kind == b"K":
            body = struct.pack("!i", struct.unpack("!i", body[:4])[0] + _PID_OFFSET) + body[4:]
        writer.write(kind + struct.pack("!i", length) + body)
        if kind == b"E":
            return
    await _pump(reader, writer)


async def _until_one_ends(*pumps: Any) -> None:
    """Return when one direction has ended: the other has nobody to serve."""
    tasks = [asyncio.ensure_future(each) for each in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
