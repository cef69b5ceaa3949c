"""Makes a race certain: two rivals have both read before either writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.statements import Connection
from tests.support.time_limits import LONG_S


class Rendezvous:
    """The first two tasks that come wait for each other; later ones pass."""

    def __init__(self) -> None:
        self._came = 0
        self._met = asyncio.Event()

    @property
    def met(self) -> bool:
        return self._met.is_set()

    async def come(self) -> None:
        self._came += 1
        if self._came == 2:
            self._met.set()
        await self._met.wait()


def meet_after(monkeypatch: pytest.MonkeyPatch, module: Any, function: str) -> Rendezvous:
    """Two transactions wait for each other when ``module.function`` has returned to both.

    Each then goes on with what it has read and waits for its rival's commit, however slow the
    machine. A lane would give up that wait after a moment and read again; the result would depend
    on how long a commit takes.
    """
    meeting = Rendezvous()
    original: Callable[..., Awaitable[Any]] = getattr(module, function)

    async def and_meet(connection: Connection, *args: Any, **kwargs: Any) -> Any:
        result = await original(connection, *args, **kwargs)
        if not meeting.met:
            await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LONG_S:g}s'"))
            await meeting.come()
        return result

    monkeypatch.setattr(module, function, and_meet)
    return meeting
