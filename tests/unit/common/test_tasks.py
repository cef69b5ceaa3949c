"""Detached tasks and periodic jobs: what they survive, what they log, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

import pytest
from structlog.testing import capture_logs

from common import deadlines, tasks
from common.errors import Overloaded
from common.tasks import (
    DetachedTasks,
    PeriodicJob,
    finished_within,
    result_of,
    run_periodic_jobs,
)

SHORT_S = 0.001
FAILED = "background_work_failed"


# -- detached tasks ------------------------------------------------------------------------------


async def test_a_task_goes_on_when_its_caller_is_cancelled() -> None:
    detached = DetachedTasks("test")
    go = asyncio.Event()
    task = detached.start(go.wait())
    caller = asyncio.create_task(result_of(task))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not task.done()
    go.set()
    assert await result_of(task)
    assert len(detached) == 0


async def test_a_task_does_not_have_its_callers_deadline() -> None:
    async def work() -> float | None:
        return deadlines.remaining()

    with deadlines.within(0.5):
        assert await result_of(DetachedTasks("test").start(work())) is None


async def test_a_refusal_reaches_those_who_wait_and_is_not_logged() -> None:
    async def work() -> None:
        raise Overloaded

    with capture_logs() as logged, pytest.raises(Overloaded):
        await result_of(DetachedTasks("test").start(work()))
    assert not logged


async def test_waiting_for_a_while_does_not_end_the_task() -> None:
    detached = DetachedTasks("test")
    go = asyncio.Event()
    task = detached.start(go.wait())
    assert not await finished_within(task, SHORT_S)
    assert not await finished_within(task, -1)
    go.set()
    assert await finished_within(task, 10)
    await detached.close(10)


async def test_closing_waits_for_tasks_and_for_those_they_start() -> None:
    detached = DetachedTasks("test")
    done = []

    async def second() -> None:
        await asyncio.sleep(0)
        done.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        detached.start(second())
        done.append("first")

    detached.start(first())
    await detached.close(10)
    assert done == ["first", "second"]


async def test_closing_cancels_tasks_that_do_not_end_in_time() -> None:
    detached = DetachedTasks("test")
    task = detached.start(asyncio.Event().wait())
    with capture_logs() as logged:
        await detached.close(0.01)
    assert task.cancelled()
    assert len(detached) == 0
    assert [line["event"] for line in logged] == ["detached_work_cut_off"]


# -- periodic jobs -------------------------------------------------------------------------------


class Unavailable(Exception):  # noqa: N818 - a state
    pass


def running(
    *runs: Callable[[asyncio.Event], Awaitable[object]], ready: bool = True
) -> AbstractAsyncContextManager[None]:
    """Jobs called a, b … that run these functions."""
    is_ready = asyncio.Event()
    if ready:
        is_ready.set()
    jobs = [PeriodicJob(name, SHORT_S, run) for name, run in zip("abc", runs, strict=False)]
    return run_periodic_jobs(
        *jobs, ready=is_ready, is_unavailable=lambda error: isinstance(error, Unavailable)
    )


@pytest.fixture
def finish_s(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how long jobs in progress get to finish."""
    return lambda limit_s: monkeypatch.setattr(tasks, "FINISH_S", limit_s)


class Run:
    """A run that first raises ``errors``, one each time, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.count = 0
        self.succeeded = asyncio.Event()

    async def __call__(self, stopping: asyncio.Event) -> None:
        self.count += 1
        if self._errors:
            raise self._errors.pop(0)
        self.succeeded.set()


async def test_jobs_start_when_the_service_is_ready() -> None:
    ready, run = asyncio.Event(), Run()
    job = PeriodicJob("a", SHORT_S, run)
    async with run_periodic_jobs(job, ready=ready, is_unavailable=lambda _error: False):
        for _ in range(10):
            await asyncio.sleep(0)
        assert not run.count
        ready.set()
        await run.succeeded.wait()


async def test_before_the_service_is_ready_the_end_waits_for_nothing(
    finish_s: Callable[[float], None],
) -> None:
    finish_s(300.0)
    run = Run()
    async with running(run, ready=False):
        await asyncio.sleep(0)
    assert not run.count


@pytest.mark.parametrize(
    ("errors", "logged_errors"),
    [
        ([LookupError("x")], ["LookupError('x')"]),
        ([LookupError("x"), LookupError("x")], ["LookupError('x')"]),
        ([LookupError("x"), LookupError("y")], ["LookupError('x')", "LookupError('y')"]),
        ([asyncio.CancelledError("inside")], ["CancelledError('inside')"]),
        ([Unavailable()], []),
    ],
    ids=["once", "repeated", "changed", "cancelled inside", "unavailable"],
)
async def test_a_failure_is_logged_when_it_begins_or_changes(
    errors: list[BaseException], logged_errors: list[str]
) -> None:
    """A failure ends no job; what readiness reports already is not logged."""
    run = Run(*errors)
    with capture_logs() as logged:
        async with running(run):
            await run.succeeded.wait()
    assert [line["error"] for line in logged if line["event"] == FAILED] == logged_errors
    assert run.count > len(errors)


async def test_a_run_in_progress_is_finished(finish_s: Callable[[float], None]) -> None:
    finish_s(300.0)
    begun, release = asyncio.Event(), asyncio.Event()
    finished: list[bool] = []

    async def run(stopping: asyncio.Event) -> None:
        begun.set()
        await release.wait()
        finished.append(stopping.is_set())

    async with running(run):
        await begun.wait()
        asyncio.get_running_loop().call_soon(release.set)
    assert finished == [True]


async def test_a_job_with_a_backlog_ends_when_the_service_stops(
    finish_s: Callable[[float], None],
) -> None:
    finish_s(300.0)
    begun = asyncio.Event()

    async def run(stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            begun.set()
            await asyncio.sleep(0)

    async with running(run):
        await begun.wait()


async def test_runs_that_hang_are_cancelled_together(finish_s: Callable[[float], None]) -> None:
    finish_s(0.05)
    begun = asyncio.Semaphore(0)

    async def hang(stopping: asyncio.Event) -> None:
        begun.release()
        await asyncio.Event().wait()

    with capture_logs() as logged:
        async with running(hang, hang):
            await begun.acquire()
            await begun.acquire()
    assert sorted((line["event"], line["work"]) for line in logged) == [
        ("background_work_cut_off", "a"),
        ("background_work_cut_off", "b"),
    ]


async def test_a_run_that_ignores_its_cancellation_is_not_waited_for(
    finish_s: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver that closes a connection to a silent server."""
    finish_s(0.05)
    monkeypatch.setattr(tasks, "CANCEL_S", 0.05)
    begun, closed = asyncio.Event(), asyncio.Event()
    runs = set[asyncio.Task[bool]]()

    async def close(stopping: asyncio.Event) -> None:
        begun.set()
        closing = asyncio.create_task(closed.wait())
        runs.add(closing)
        while not closing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(closing)

    async with running(close):
        await begun.wait()
    assert not closed.is_set()
    closed.set()
    await asyncio.wait(runs)
