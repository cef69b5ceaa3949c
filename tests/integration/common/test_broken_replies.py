"""A server whose session ends at any point of its start, or of a statement, in any way."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import pytest
import sqlalchemy as sa

from common.db.database import open_pools
from common.db.errors import CannotConnect, Fault, classify, is_lost
from common.db.repeat import read
from common.db.statements import Connection
from common.errors import DatabaseUnavailable


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def fatal(text: bytes) -> bytes:
    return message(b"E", b"SFATAL\0VFATAL\0C57P01\0M" + text + b"\0\0")


READY: Final = message(b"Z", b"I")
GREETING: Final = [
    message(b"R", struct.pack("!i", 0)),
    message(b"S", b"server_version\x0018.0\0"),
    message(b"S", b"in_hot_standby\0off\0"),
    message(b"K", struct.pack("!ii", 1, 2)),
    READY,
]
SEVEN: Final = sa.text("SELECT 7 AS n")
INT4: Final = struct.pack("!ihihih", 0, 0, 23, 4, -1, 0)
PREPARED: Final = [
    message(b"1"),
    message(b"t", struct.pack("!h", 0)),
    message(b"T", struct.pack("!h", 1) + b"n\0" + INT4),
]
ROW: Final = message(b"D", struct.pack("!hii", 1, 4, 7))
FETCHED: Final = [message(b"2"), ROW, message(b"C", b"SELECT 1\0"), READY]
WHOLE: Final = [GREETING, PREPARED, FETCHED]
ENDS: Final = {
    "closed": b"",
    "reset": b"",
    "announced": fatal(b"going down"),
    "announced in other letters": fatal(b"\xb8\xd3\xb1\xd7"),
    "cut in a message": fatal(b"going down")[:9],
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}
STEPS: Final = sum(map(len, WHOLE))


@asynccontextmanager
async def breaking(end: str, step: int) -> AsyncIterator[str]:
    """A server that replies properly for so many messages, and then ends each session."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = step
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for part in WHOLE:
                await (_startup(reader, writer) if part is GREETING else _request(reader))
                writer.write(b"".join(part[:left]))
                await writer.drain()
                left -= len(part)
                if left < 0:
                    break
            writer.write(ENDS[end])
            await writer.drain()
        if end == "reset":
            used = writer.get_extra_info("socket")
            used.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"postgresql://u:p@127.0.0.1:{server.sockets[0].getsockname()[1]}/d"


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for asks_for_tls in (True, False):
        size = struct.unpack("!i", await reader.readexactly(4))[0]
        await reader.readexactly(size - 4)
        if asks_for_tls:
            writer.write(b"N")


async def _request(reader: asyncio.StreamReader) -> None:
    kind = b""
    while kind not in (b"S", b"H"):  # Sync or Flush
        kind, size = struct.unpack("!ci", await reader.readexactly(5))
        await reader.readexactly(size - 4)


async def seven(connection: Connection) -> int:
    return int(await connection.scalar(SEVEN))


@pytest.mark.parametrize("end", ENDS)
async def test_an_end_at_any_point_is_the_servers_and_loses_the_session(end: str) -> None:
    for step in range(STEPS):
        async with breaking(end, step) as url:
            database = open_pools(url, application_name="broken", pool_size=4)
            with pytest.raises(Exception) as caught:
                async with database.reads.connect() as connection:
                    await seven(connection)
            assert classify(caught.value) is Fault.CONNECTION, (step, caught.value)
            assert is_lost(caught.value) or isinstance(caught.value, CannotConnect), step
            with pytest.raises(DatabaseUnavailable):
                await read(database, seven)
            await database.close()


async def test_control_a_server_that_replies_to_the_end_is_understood() -> None:
    async with breaking("closed", STEPS) as url:
        database = open_pools(url, application_name="broken", pool_size=4)
        async with database.reads.connect() as connection:
            assert await seven(connection) == 7
        await database.close()
