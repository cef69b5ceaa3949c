"""Work that goes on beside the calls for as long as a service runs: sweeps and clean-ups."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from common.database import Database, tells_unready

FINISH_S: Final = 1.0
"""How long runs in progress get to end. A batch takes a moment unless the database hangs."""
CUT_OFF_S: Final = 2.0
"""What those get that are then cut off: the driver closes their connections."""
STOP_S: Final = FINISH_S + CUT_OFF_S

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Work:
    """Something to be done again and again."""

    name: str
    interval_s: float
    do: Callable[[asyncio.Event], Awaitable[object]]
    """One run. The event is set when the service stops: what works through a backlog looks at it
    after each batch, and leaves the rest to others."""


@asynccontextmanager
async def in_background(database: Database, *works: Work) -> AsyncIterator[None]:
    """Do each of ``works`` about every so often until the block ends, whatever it raises.

    They begin when ``database`` has been found fit once. Intervals vary by a fifth, so that
    replicas started together do not sweep in step. At the end runs in progress get FINISH_S, all
    of them together, to finish what they may be about to commit; then they are cancelled, as a
    replica that is killed leaves them.

    A failure is logged when it begins or changes, not at each run; of a database that is away, the
    replica's readiness tells.
    """
    stopping = asyncio.Event()
    tasks = {
        asyncio.create_task(_repeat(work, database, stopping), name=work.name) for work in works
    }
    try:
        yield
    finally:
        stopping.set()
        if not database.checked.is_set():
            _cancel(tasks)
        _, late = await asyncio.wait(tasks, timeout=FINISH_S)
        for task in late:
            _log.warning("background_work_cut_off", work=task.get_name())
        _cancel(late)
        await asyncio.wait(tasks, timeout=CUT_OFF_S)


def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _repeat(work: Work, database: Database, stopping: asyncio.Event) -> None:
    await database.checked.wait()
    told = ""
    while not stopping.is_set():
        failure = await _failure_of(work, stopping)
        if failure and failure != told:
            _log.warning("background_work_failed", work=work.name, error=failure)
        elif told and not failure:
            _log.info("background_work_goes_on", work=work.name)
        told = failure
        pause_s = work.interval_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
        try:
            await asyncio.wait_for(stopping.wait(), pause_s)
        except TimeoutError:
            continue


async def _failure_of(work: Work, stopping: asyncio.Event) -> str:
    """Run once; what went wrong and is not told elsewhere, or ''. The next run may succeed."""
    try:
        await work.do(stopping)
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        # Of something inside, as a driver's future: nobody has asked this task to end.
        return repr(error)
    except Exception as error:  # noqa: BLE001 - see above
        return "" if tells_unready(error) else repr(error)[:200]
    return ""
