"""Makes a race happen: the two rivals have both read before either writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest


class Rendezvous:
    """The first two who come wait for each other; whoever comes later passes."""

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
    """Two rivals meet when ``module.function`` has returned to each of them."""
    meeting = Rendezvous()
    original: Callable[..., Awaitable[Any]] = getattr(module, function)

    async def and_meet(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        await meeting.come()
        return result

    monkeypatch.setattr(module, function, and_meet)
    return meeting
