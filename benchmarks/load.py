"""A closed loop of callers: each sends its next call when its last one was answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Unary = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Rate:
    """What one stretch of load came to."""

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        return self.calls / self.seconds


async def closed_loop(
    method: Unary, payload: Callable[[int], bytes], *, callers: int, seconds: float, first: int = 0
) -> Rate:
    """Call ``method`` with ``payload(n)``, n rising from ``first``; a failed call ends the run."""
    took: list[float] = []
    numbers = iter(range(first, 2**62))
    begun = time.perf_counter()
    end = begun + seconds

    async def caller() -> None:
        while (start := time.perf_counter()) < end:
            await method(payload(next(numbers)))
            took.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    elapsed = time.perf_counter() - begun
    took.sort()
    return Rate(len(took), elapsed, took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000)
