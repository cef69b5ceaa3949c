"""TLS in front of the tests' PostgreSQL and Redis servers, which are built without it."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.support.certificates import HOST, server_context

_SSL_REQUEST: Final = struct.pack(">II", 8, 80877103)
"""What a client of PostgreSQL begins with to ask for TLS; ``S`` grants it."""

_TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of TLS."""


@asynccontextmanager
async def tls_in_front_of(
    host: str, port: int, directory: Path, *, postgres: bool = False
) -> AsyncIterator[int]:
    """A port with the directory's certificate that leads to ``host:port`` without TLS."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if postgres:
                assert await reader.readexactly(len(_SSL_REQUEST)) == _SSL_REQUEST
                writer.write(b"S")
                await writer.drain()
                # Read anew for each connection, as a reloaded server would.
                await writer.start_tls(server_context(directory))
            out_reader, out_writer = await asyncio.open_connection(host, port)
            await asyncio.gather(_copy(reader, out_writer), _copy(out_reader, writer))
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    tls = None if postgres else server_context(directory)
    server = await asyncio.start_server(handle, HOST, 0, ssl=tls)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


@asynccontextmanager
async def tls_or_plaintext(host: str, port: int, directory: Path) -> AsyncIterator[int]:
    """The same of a port that leads plaintext to ``host:port`` too.

    For a primary: the Sentinel, which has no TLS here, names it to clients by the address at which
    it watches it.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(65_536)
            target = tls_port if first.startswith(_TLS_HANDSHAKE) else port
            out_reader, out_writer = await asyncio.open_connection(host, target)
            out_writer.write(first)
            await asyncio.gather(_copy(reader, out_writer), _copy(out_reader, writer))
        except (OSError, asyncio.CancelledError):  # the end of one side, or of the test
            pass
        finally:
            writer.close()

    async with tls_in_front_of(host, port, directory) as tls_port:
        server = await asyncio.start_server(handle, HOST, 0)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
