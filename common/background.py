"""Work that goes on beside the calls for as long as a service runs: sweeps and clean-ups."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from common.database import tells_unready

_log = structlog.stdlib.get_logger()


@asynccontextmanager
async def periodically(
    name: str, interval_s: float, work: Callable[[], Awaitable[object]]
) -> AsyncIterator[None]:
    """Run ``work`` about every ``interval_s`` seconds until the block ends, whatever it raises.

    Intervals vary by a fifth, so that replicas started together do not sweep in step. At the end a
    run in progress is finished, not cancelled: it may be about to commit.

    A failure is logged when it begins or changes, not at each run; of a database that is away, the
    replica's readiness tells.
    """
    stopped = asyncio.Event()

    async def run() -> None:
        told = ""
        while not stopped.is_set():
            failure = ""
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the next run may succeed
                if not tells_unready(error):
                    failure = repr(error)[:200]
            if failure and failure != told:
                _log.warning("background_work_failed", work=name, error=failure)
            elif told and not failure:
                _log.info("background_work_goes_on", work=name)
            told = failure
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
