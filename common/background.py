"""Work that goes on beside the calls for as long as a service runs: sweeps and clean-ups."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

_log = structlog.stdlib.get_logger()


@asynccontextmanager
async def periodically(
    name: str, interval_s: float, work: Callable[[], Awaitable[object]]
) -> AsyncIterator[None]:
    """Run ``work`` about every ``interval_s`` seconds until the block ends, whatever it raises.

    Intervals vary by a fifth, so that replicas started together do not sweep in step. At the end a
    run in progress is finished, not cancelled: it may be about to commit.
    """
    stopped = asyncio.Event()

    async def run() -> None:
        while not stopped.is_set():
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the next run may succeed
                _log.warning("background_work_failed", work=name, error=repr(error)[:200])
            pause = interval_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
            try:
                await asyncio.wait_for(stopped.wait(), pause)
            except TimeoutError:
                continue

    task = asyncio.create_task(run(), name=name)
    try:
        yield
    finally:
        stopped.set()
        await task
