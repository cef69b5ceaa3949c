"""Requests of HTTP that are no gRPC: they fail alone, and their connection goes on (grpc#34721)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.integration.common.echo import SAY, serving

DATA, HEADERS, RST_STREAM, SETTINGS = 0x0, 0x1, 0x3, 0x4
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP: Final = b"\x86"
POST: Final = b"\x83"
FROM_FIRST: Final = bytes(0x80 | index for index in (64, 63, 62))
"""The first request's :authority, content-type and te, from the table of the connection."""


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def added(name: bytes, value: bytes) -> bytes:
    """A header that enters the table of the connection."""
    return b"\x40" + text(name) + text(value)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    ) + payload


@asynccontextmanager
async def connected(
    address: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("method", [b"HEAD", b"GET", b"OPTIONS", b"MADE_UP"])
async def test_another_http_method_fails_alone(method: bytes) -> None:
    """A health checker sends HEAD. Calls that follow use headers that it has added."""
    first = HTTP + b"".join(
        added(name, value)
        for name, value in (
            (b":method", method),
            (b":path", b"/"),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    call = POST + HTTP + b"\x00" + text(b":path") + text(SAY.encode()) + FROM_FIRST
    message = StringValue(value="hi").SerializeToString()
    data = b"\x00" + struct.pack(">I", len(message)) + message
    async with serving() as (address, _), connected(address) as (reader, writer):
        writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, first))
        writer.write(frame(HEADERS, END_HEADERS, 3, call) + frame(DATA, END_STREAM, 3, data))
        ended: set[int] = set()
        responses: dict[int, bytes] = {}
        while ended != {1, 3}:
            header = await reader.readexactly(9)
            kind, flags, stream = header[3], header[4], int.from_bytes(header[5:], "big")
            payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
            if kind == SETTINGS and not flags & ACK:
                writer.write(frame(SETTINGS, ACK, 0))
            if kind == DATA:
                responses[stream] = payload
            if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                ended.add(stream)
    assert responses == {3: data}
