"""Requests of HTTP that are no gRPC: they fail alone, and their connection goes on (grpc#34721)."""

from __future__ import annotations

from typing import Final

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.integration.common.echo import SAY, serving
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    HTTP,
    POST,
    message,
    raw_connection,
)

FROM_FIRST: Final = bytes(0x80 | index for index in (64, 63, 62))
"""The first request's :authority, content-type and te, from the table of the connection."""


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def added(name: bytes, value: bytes) -> bytes:
    """A header that enters the table of the connection."""
    return b"\x40" + text(name) + text(value)


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
    data = message(StringValue(value="hi").SerializeToString())
    async with serving() as (address, _), raw_connection(address) as connection:
        connection.send(HEADERS, END_HEADERS | END_STREAM, 1, first)
        connection.send(HEADERS, END_HEADERS, 3, call)
        connection.send(DATA, END_STREAM, 3, data)
        ended: set[int] = set()
        responses: dict[int, bytes] = {}
        while ended != {1, 3}:
            got = await connection.next()
            if got.kind == DATA:
                responses[got.stream] = got.payload
            if got.ends_stream:
                ended.add(got.stream)
    assert responses == {3: data}
