"""Two kinds of load: callers in a closed loop, and calls at a fixed rate."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from benchmarks.load.http2 import CallError

Step: TypeAlias = Callable[[], Awaitable[None]]
"""Does one unit of work, such as one call. Raises CallError."""


@dataclass(slots=True)
class Sample:
    """What one period of load did. Latencies are of the steps that succeeded."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    """By status and message."""

    @property
    def done(self) -> int:
        return len(self.latencies_s)

    @property
    def per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        """NaN if nothing succeeded."""
        if not self.latencies_s:
            return float("nan")
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


async def closed_loop(step: Step, *, callers: int, seconds: float) -> Sample:
    """Each of the callers begins its next step when its last one has ended."""
    sample = Sample()
    begin = time.perf_counter()
    end = begin + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            await _timed(step, sample)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    sample.seconds = time.perf_counter() - begin
    return sample


async def fixed_rate(step: Step, *, per_second: float, seconds: float) -> Sample:
    """Steps begin at even intervals, however long the ones before take."""
    sample = Sample()
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(max(1, round(per_second * seconds))):
            due = begin + number / per_second
            if (early_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            group.create_task(_timed(step, sample))
    sample.seconds = time.perf_counter() - begin
    return sample


async def _timed(step: Step, sample: Sample) -> None:
    start = time.perf_counter()
    try:
        await step()
    except CallError as error:
        sample.failed[str(error)[:200]] += 1
    else:
        sample.latencies_s.append(time.perf_counter() - start)
