"""The end of bulk calls' waits at a moment that a test chooses, however slow the machine is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.batching import bulk


class BulkWaits:
    """Stands for asyncio in ``common.batching.bulk``, and keeps the time limits that it sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._limits: list[asyncio.Timeout] = []
        self._decided = asyncio.Semaphore(0)
        decide = bulk._Chunk.decide

        def counted(chunk: bulk._Chunk[Any], position: int, outcome: Any) -> None:
            decide(chunk, position, outcome)
            self._decided.release()

        monkeypatch.setattr(bulk, "asyncio", self)
        monkeypatch.setattr(bulk._Chunk, "decide", counted)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    def timeout(self, delay_s: float | None) -> asyncio.Timeout:
        limit = asyncio.timeout(delay_s)
        self._limits.append(limit)
        return limit

    async def decided(self, items: int) -> None:
        """Wait until so many more items have an outcome."""
        for _ in range(items):
            await self._decided.acquire()

    def end(self) -> None:
        """Let the bulk calls that wait return, as they do shortly before their deadlines."""
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())
        self._limits.clear()
