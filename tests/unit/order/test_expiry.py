"""The sweep of due orders ends after the batch in which the service stops."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from common.request_key import Result
from order_service.use_cases import order
from order_service.use_cases.order import SWEEP_ROWS, Orders


async def test_a_sweep_ends_after_its_batch_when_the_service_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping, reads = asyncio.Event(), itertools.count(1)

    async def endless(_connection: Any, *, size: int) -> list[str]:
        if next(reads) == 2:
            stopping.set()
        return [str(number) for number in range(size)]

    lane: Any = Mock(submit=AsyncMock(return_value=Result(object())))
    unused: Any = None
    monkeypatch.setattr(order, "reading", MagicMock())
    monkeypatch.setattr(order, "store", Mock(read_due=endless))
    orders = Orders(unused, lane, unused, unused, unused)
    assert await orders.expire_due(stopping) == 2 * SWEEP_ROWS
