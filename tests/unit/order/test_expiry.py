"""The sweep of due orders ends with its batch when the service stops, whatever is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from order_service.use_cases import orders
from order_service.use_cases.order import SWEEP_ROWS, Orders


class Endless:
    """A backlog that grows as fast as it is worked off."""

    def __init__(self) -> None:
        self.batches = 0
        self.stopping = asyncio.Event()

    def register(self, command: type, handler: Any) -> None:
        """What a lane is told; nothing of it is used."""

    def tell(self, listener: Any) -> None:
        """As ``register``."""

    async def read_due(self, connection: Any, *, size: int) -> list[str]:
        self.batches += 1
        if self.batches == 2:
            self.stopping.set()
        return [str(number) for number in range(size)]

    async def submit(self, command: Any) -> object:
        return command


async def test_the_sweep_ends_with_its_batch_when_the_service_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def reading(_database: Any) -> AsyncIterator[None]:
        yield

    backlog: Any = Endless()
    monkeypatch.setattr(orders, "reading", reading)
    monkeypatch.setattr(orders, "store", backlog)
    nothing: Any = None
    swept = Orders(nothing, backlog, backlog, expiry=timedelta(minutes=15), begin_cancel=nothing)
    assert await swept.expire_due(backlog.stopping) == 2 * SWEEP_ROWS
