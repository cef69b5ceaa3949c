"""The sweep of due orders ends after the batch in which the service stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.request_key import Result
from order_service.use_cases import order
from order_service.use_cases.order import SWEEP_ROWS, Orders


class EndlessBacklog:
    """A store and a lane: every read finds more due orders, and each of them expires."""

    def __init__(self) -> None:
        self.batches = 0
        self.stopping = asyncio.Event()

    async def read_due(self, _connection: Any, *, size: int) -> list[str]:
        self.batches += 1
        if self.batches == 2:
            self.stopping.set()
        return [str(number) for number in range(size)]

    async def submit(self, command: Any) -> Result[object]:
        return Result(command)


async def test_a_sweep_ends_after_its_batch_when_the_service_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def reading(_database: Any) -> AsyncIterator[None]:
        yield

    backlog: Any = EndlessBacklog()
    unused: Any = None
    monkeypatch.setattr(order, "reading", reading)
    monkeypatch.setattr(order, "store", backlog)
    orders = Orders(unused, backlog, unused, unused, unused)
    assert await orders.expire_due(backlog.stopping) == 2 * SWEEP_ROWS
