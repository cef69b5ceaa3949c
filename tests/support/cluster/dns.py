"""The cluster's DNS server: the names of Services, over UDP and TCP, with a short time to live."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Final, cast

from dnslib import QTYPE, RCODE, RR, A, DNSError, DNSRecord

from tests.support.cluster.network import Services

TTL_S: Final = 5
"""What cluster DNS (CoreDNS) gives Services by default."""
LENGTH_BYTES: Final = 2


def answer(services: Services, packet: bytes) -> bytes | None:
    """The reply to a query; None to what is not one."""
    try:
        query = DNSRecord.parse(packet)
    except DNSError:
        return None
    reply = query.reply()
    found = services.resolve(str(query.q.qname))
    if found is None:
        reply.header.rcode = RCODE.NXDOMAIN
    elif query.q.qtype == QTYPE.A:
        for address in found:
            reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_S))
    # Any other type, such as AAAA: the name exists and has none.
    return bytes(reply.pack())


@contextlib.asynccontextmanager
async def serving(held: socket.socket, services: Services) -> AsyncIterator[None]:
    """Answer on the bound UDP socket, and on the same address and port over TCP."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(services), sock=held)

    async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
                reply = answer(services, await reader.readexactly(length))
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
    def __init__(self, services: Services) -> None:
        self._services = services
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        reply = answer(self._services, data)
        if reply is not None:
            self._transport.sendto(reply, addr)
