"""An address of the database that can be away."""

from __future__ import annotations

import asyncio


class Gateway:
    """Forwards bytes to the database while it is open, and none while it is silent."""

    def __init__(self, port: int, to_port: int) -> None:
        self.port = port
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._speaks = asyncio.Event()
        self._speaks.set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def fall_silent(self) -> None:
        """Keep connections, take new ones, and answer nothing, as a server that hangs."""
        self._speaks.clear()

    def speak(self) -> None:
        """What was held back goes on its way."""
        self._speaks.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while some := await reader.read(65_536):
                await self._speaks.wait()
                writer.write(some)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
