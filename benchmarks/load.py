"""A closed loop of callers: each sends its next call when its last one has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Unary = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate and latencies of one period of load."""

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
    """Call ``method`` with ``payload(n)``, n from ``first`` on; a failed call ends the run."""
    took_s: list[float] = []
    numbers = iter(range(first, 2**62))
    begin = time.perf_counter()
    end = begin + seconds

    async def caller() -> None:
        while (start := time.perf_counter()) < end:
            await method(payload(next(numbers)))
            took_s.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    elapsed_s = time.perf_counter() - begin
    took_s.sort()
    p50_s, p99_s = took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.99)]
    return Rate(len(took_s), elapsed_s, p50_s * 1000, p99_s * 1000)
