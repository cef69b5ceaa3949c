"""A port in front of the database that can be closed or silent."""

from __future__ import annotations

import asyncio

from sqlalchemy.engine import make_url


class Forwarder:
    """Forwards bytes to the database of ``url`` while it is open, and none while it is silent."""

    def __init__(self, port: int, url: str) -> None:
        self.port = port
        self.url = make_url(url).set(port=port).render_as_string(hide_password=False)
        self._to_port = make_url(url).port or 0
        self._server: asyncio.Server | None = None
        self._forwards = asyncio.Event()
        self._forwards.set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def silence(self) -> None:
        """Keep connections, accept new ones, and forward nothing, as a server that hangs."""
        self._forwards.clear()

    def resume(self) -> None:
        """Forward again, and what was held back."""
        self._forwards.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self._forwards.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
