"""A server that speaks Redis' protocol and replies to scripts and writes with what a test chose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

OK: Final = b"+OK\r\n"
_HELLO: Final = b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n"
_HANDSHAKE: Final = {
    **dict.fromkeys((b"CLIENT", b"SELECT", b"AUTH"), OK),
    b"HELLO": _HELLO,
    b"PING": b"+PONG\r\n",
}


class RedisStandIn:
    """Replies ``reply`` to every command but those of the handshake."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        """One reply in Redis' protocol, or bytes that are none."""
        self.greets = True
        """Whether the handshake gets its proper replies too."""
        self.hangs_up = False
        """Whether the connection ends with ``reply``."""
        self.received = 0
        """How many commands got ``reply``."""
        self.connections = 0
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def replying(cls, reply: bytes) -> AsyncIterator[RedisStandIn]:
        """A server on a free port, until the end of the block."""
        stand_in = cls(reply)
        writers: set[asyncio.StreamWriter] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await stand_in._serve(reader, writer)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        stand_in.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield stand_in
        finally:
            server.close()
            for writer in writers:
                writer.transport.abort()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            size = int((await reader.readuntil(b"\r\n"))[1:])
            words = []
            for _ in range(size):
                length = int((await reader.readuntil(b"\r\n"))[1:])
                words.append((await reader.readexactly(length + 2))[:-2])
            known = _HANDSHAKE.get(words[0].upper()) if self.greets else None
            self.received += known is None
            writer.write(self.reply if known is None else known)
            await writer.drain()
            if known is None and self.hangs_up:
                return
