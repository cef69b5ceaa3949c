"""What a benchmark of locks does about a library that loses a waiter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks import lock_subjects
from benchmarks.lock_subjects import Handoffs
from benchmarks.subjects import Load


async def test_a_round_that_does_not_end_fails_and_ends_its_period(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def no_worker(*_: str) -> AsyncIterator[None]:
        yield

    async def stuck(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(lock_subjects, "_worker", no_worker)
    monkeypatch.setattr(Handoffs, "_round", stuck)
    monkeypatch.setattr(lock_subjects, "ROUND_S", 0.0)
    monkeypatch.setattr(lock_subjects, "ROUND_EACH_S", 0.001)
    async with Handoffs("any", "any", "").session(Load(16, 5.0)) as run:
        sample = await run()
    assert (sample.done, sample.failed.total()) == (0, 16)
