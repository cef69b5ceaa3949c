"""The cluster's DNS server: the names of Services, over UDP and TCP, with or without a cache."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final, cast

from dnslib import QTYPE, RCODE, RR, A, DNSError, DNSRecord

from tests.support.cluster.network import Services

TTL_S: Final = 5
"""The default of CoreDNS for Services; kubeadm sets 30 s (see Names.kept)."""
LENGTH_BYTES: Final = 2


class Names:
    """Resolves names to the present endpoints, or to those of a cached answer."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._kept_s = 0.0
        self._kept: dict[str, tuple[float, list[str] | None]] = {}

    @contextlib.contextmanager
    def kept(self, seconds: float) -> Iterator[None]:
        """In the block, cache each answer for this time, as CoreDNS with ``cache 30`` does."""
        self._kept_s = seconds
        try:
            yield
        finally:
            self._kept_s = 0.0
            self._kept.clear()

    def resolve(self, name: str) -> tuple[list[str] | None, int]:
        """The answer of ``Services.resolve``, and its TTL in seconds."""
        if not self._kept_s:
            return self._services.resolve(name), TTL_S
        now = time.monotonic()
        until, found = self._kept.get(name, (now, None))
        if until <= now:
            until, found = now + self._kept_s, self._services.resolve(name)
            self._kept[name] = until, found
        return found, math.ceil(until - now)


def answer(names: Names, packet: bytes) -> bytes | None:
    """The reply to a query; None for any other packet."""
    try:
        query = DNSRecord.parse(packet)
    except DNSError:
        return None
    reply = query.reply()
    found, ttl_s = names.resolve(str(query.q.qname))
    if found is None:
        reply.header.rcode = RCODE.NXDOMAIN
    elif query.q.qtype == QTYPE.A:
        for address in found:
            reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=ttl_s))
    # Any other type, such as AAAA: the name exists and has no record.
    return bytes(reply.pack())


def bound() -> socket.socket:
    """A UDP socket of loopback on a port that is free for TCP too."""
    while True:
        held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        held.bind(("127.0.0.1", 0))
        with contextlib.suppress(OSError), socket.create_server(held.getsockname()):
            return held
        held.close()


@contextlib.asynccontextmanager
async def serving(held: socket.socket, names: Names) -> AsyncIterator[None]:
    """Answer queries on the bound UDP socket, and over TCP on the same address and port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(names), sock=held)

    async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
                reply = answer(names, await reader.readexactly(length))
                if reply is None:
                    return
                writer.write(len(reply).to_bytes(LENGTH_BYTES) + reply)
                await writer.drain()

    server = await asyncio.start_server(over_tcp, *held.getsockname())
    try:
        yield
    finally:
        server.close()
        transport.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        reply = answer(self._names, data)
        if reply is not None:
            self._transport.sendto(reply, addr)
