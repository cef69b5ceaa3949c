"""The sweep of due orders ends after the batch in which the service stops."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from common.paging import TimePosition
from common.request_key import Result
from order_service.use_cases import expiry
from order_service.use_cases.expiry import SWEEP_ROWS, Expiry


async def test_a_sweep_ends_after_its_batch_when_the_service_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping, reads = asyncio.Event(), itertools.count(1)

    async def endless(_connection: Any, *, after: TimePosition, size: int) -> list[TimePosition]:
        if next(reads) == 2:
            stopping.set()
        return [TimePosition(after.time, str(number)) for number in range(size)]

    lane: Any = Mock(submit=AsyncMock(return_value=Result(object())))
    unused: Any = None

    async def without_database(_database: Any, work: Any) -> Any:
        return await work(None)

    monkeypatch.setattr(expiry, "read", without_database)
    monkeypatch.setattr(expiry, "store", Mock(read_due=endless))
    assert await Expiry(unused, lane).run(stopping) == 2 * SWEEP_ROWS
