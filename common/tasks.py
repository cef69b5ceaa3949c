"""Tasks that no call waits for: work detached from its caller, and jobs that run periodically."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from common import tracing
from common.errors import Refusal
from common.metrics import REGISTRY, from_zero

T = TypeVar("T")

FINISH_S: Final = 1.0
"""How long jobs in progress get to finish at the end. A batch takes a moment, unless the database
hangs."""
CANCEL_S: Final = 2.0
"""How long cancelled jobs get to end: they roll back."""
STOP_S: Final = FINISH_S + CANCEL_S

_failures = Counter(
    "tally_background_work_failures",
    "Runs of periodic jobs that failed, by the job's name. The next run may succeed.",
    ("work",),
    registry=REGISTRY,
)
_succeeded = Gauge(
    "tally_background_work_success_timestamp_seconds",
    "Unix time of the last run of a periodic job that succeeded, by the job's name; before the "
    "first one, of the job's start.",
    ("work",),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


# -- detached tasks ------------------------------------------------------------------------------


class DetachedTasks:
    """Work that continues when the call that started it is gone.

    Each task has a context of its own: it has neither the caller's deadline nor its cancellation.
    It stays in the caller's trace.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # The type of a task's result is known to its caller.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._context = tracing.own_context()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` to its end. Wait for it with ``result_of``, or not at all."""
        task = asyncio.get_running_loop().create_task(work, context=self._context())
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def close(self, limit_s: float) -> None:
        """Wait at most ``limit_s`` for the tasks and for those they start, then cancel the rest."""
        try:
            async with asyncio.timeout(limit_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        except TimeoutError:
            _log.warning("detached_work_cut_off", work=self._name, tasks=len(self._tasks))
        while self._tasks:
            running = set(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Refusal):
            _log.error("detached_work_failed", work=self._name, exc_info=error)


async def result_of(task: asyncio.Future[T]) -> T:
    """The task's result, or its exception raised. If the caller is cancelled, the task goes on."""
    if not task.done():
        await asyncio.wait({task})
    return task.result()


async def finished_within(task: asyncio.Future[T], limit_s: float) -> bool:
    """Whether the task ends within ``limit_s``, with any result. If it does not, it goes on."""
    done, _ = await asyncio.wait({task}, timeout=max(0.0, limit_s))
    return bool(done)


def is_cancelled() -> bool:
    """Whether the running task was cancelled: a CancelledError may also come from within, when
    something that the task awaits was cancelled, such as a driver's future."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# -- periodic jobs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A function that runs about every ``interval_s`` seconds."""

    name: str
    interval_s: float
    run: Callable[[asyncio.Event], Awaitable[object]]
    """One run. The event is set when the service stops: a job with a backlog checks it after each
    batch and leaves the rest to other replicas."""


@asynccontextmanager
async def run_periodic_jobs(
    *jobs: PeriodicJob, ready: asyncio.Event, failure_of: Callable[[BaseException], str]
) -> AsyncIterator[None]:
    """Run the jobs until the block ends, whatever they raise.

    They start when ``ready`` is set. Intervals vary by a fifth, so that replicas started together
    do not run in step. At the end, runs in progress get FINISH_S, all of them together, to commit;
    then they are cancelled, which leaves what a killed replica would leave.

    A failure is logged when it begins or changes, not on each run, and counted each time.
    ``failure_of`` names it: the same failure by the same text.
    """
    from_zero(_failures, [job.name for job in jobs])
    stopping = asyncio.Event()
    tasks = {
        asyncio.create_task(_repeat(job, ready, stopping, failure_of), name=job.name)
        for job in jobs
    }
    try:
        yield
    finally:
        stopping.set()
        if not ready.is_set():
            _cancel(tasks)
        _, late = await asyncio.wait(tasks, timeout=FINISH_S)
        for task in late:
            _log.warning("background_work_cut_off", work=task.get_name())
        _cancel(late)
        await asyncio.wait(tasks, timeout=CANCEL_S)


def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _repeat(
    job: PeriodicJob,
    ready: asyncio.Event,
    stopping: asyncio.Event,
    failure_of: Callable[[BaseException], str],
) -> None:
    await ready.wait()
    # A first run that hangs is overdue some time later.
    _succeeded.labels(job.name).set_to_current_time()
    logged = ""
    while not stopping.is_set():
        error = await _error_of(job, stopping)
        failure = "" if error is None else failure_of(error)
        if failure:
            _failures.labels(job.name).inc()
        else:
            _succeeded.labels(job.name).set_to_current_time()
        if failure and failure != logged:
            _log.warning("background_work_failed", work=job.name, error=failure)
        elif logged and not failure:
            _log.info("background_work_goes_on", work=job.name)
        logged = failure
        pause_s = job.interval_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
        try:
            await asyncio.wait_for(stopping.wait(), pause_s)
        except TimeoutError:
            continue


async def _error_of(job: PeriodicJob, stopping: asyncio.Event) -> BaseException | None:
    """Run the job once; the error it ended with. The next run may succeed."""
    try:
        await job.run(stopping)
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        return error
    except Exception as error:  # noqa: BLE001 - the loop logs it
        return error
    return None
