"""Connections: the pings that keep them, and the port that they come by."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
import pytest

from common.rpc import channels, server
from tests.integration.common.echo import serving

PING, GOAWAY, SETTINGS = 0x6, 0x7, 0x4
ACK: Final = 0x1
ENHANCE_YOUR_CALM: Final = 0xB
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class RawClient:
    """HTTP/2 by hand: pings when it is told to, which no library would do as badly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, kind: int, payload: bytes = b"", flags: int = 0) -> None:
        header = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4)
        self._writer.write(header + payload)

    async def frame(self) -> tuple[int, int, bytes]:
        header = await self._reader.readexactly(9)
        length = int.from_bytes(header[:3], "big")
        return header[3], header[4], await self._reader.readexactly(length)

    async def ping(self) -> int | None:
        """Waits for the answer; the code of the GOAWAY that came instead, if one did."""
        self.send(PING, b"12345678")
        while True:
            kind, flags, payload = await self.frame()
            if kind == GOAWAY:
                return int.from_bytes(payload[4:8], "big")
            if kind == PING and flags & ACK:
                return None
            if kind in {PING, SETTINGS} and not flags & ACK:
                self.send(kind, payload if kind == PING else b"", ACK)


@asynccontextmanager
async def raw_client(address: str) -> AsyncIterator[RawClient]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE)
    client = RawClient(reader, writer)
    client.send(SETTINGS)
    try:
        yield client
    finally:
        writer.close()
        await writer.wait_closed()


async def told_after_pings(every_s: float, count: int = 8) -> int | None:
    """What a server says to a client without calls that pings this often."""
    async with serving() as (address, _), raw_client(address) as client:
        for _ in range(count):
            if (code := await client.ping()) is not None:
                return code
            await asyncio.sleep(every_s)
    return None


async def test_a_client_that_pings_as_ours_do_is_not_told_to_calm_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a hundredth of the times: the server's least interval, and our clients' own."""
    monkeypatch.setattr(server, "CLIENT_PING_LEAST_MS", server.CLIENT_PING_LEAST_MS // 100)
    assert await told_after_pings(channels.KEEPALIVE_MS / 1000 / 100) is None


async def test_control_at_grpcs_own_interval_such_a_client_is_thrown_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "CLIENT_PING_LEAST_MS", 300_000)
    assert await told_after_pings(channels.KEEPALIVE_MS / 1000 / 100) == ENHANCE_YOUR_CALM


async def test_a_client_that_pings_much_more_often_is_thrown_out() -> None:
    assert await told_after_pings(0.0) == ENHANCE_YOUR_CALM


async def test_a_second_server_on_the_port_does_not_bind_in_silence() -> None:
    """The option by itself, against gRPC's default, which lets both bind and share the calls."""
    async with serving() as (address, _):
        default = grpc.aio.server()
        with pytest.raises(RuntimeError):
            default.add_insecure_port(address)
        await default.stop(None)
    first, second = grpc.aio.server(), grpc.aio.server()
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.1:{port}") == port
    await asyncio.gather(first.stop(None), second.stop(None))
