"""Detached tasks and periodic jobs: what they survive, what they log, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

import pytest
from structlog.testing import capture_logs

from common import deadlines, tasks
from common.db.errors import failure_of
from common.errors import Overloaded
from common.metrics import REGISTRY
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


async def test_a_task_goes_on_without_its_caller() -> None:
    detached = DetachedTasks("test")
    go = asyncio.Event()
    task = detached.start(go.wait())
    caller = asyncio.create_task(result_of(task))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    for limit_s in (SHORT_S, -1.0):
        assert not await finished_within(task, limit_s)
    go.set()
    assert await finished_within(task, 10.0)
    assert task.result()
    assert len(detached) == 0


async def test_a_refusal_reaches_those_who_wait_and_is_not_logged() -> None:
    """The task does not have its caller's deadline."""

    async def work() -> None:
        assert deadlines.remaining() is None
        raise Overloaded

    with deadlines.within(0.5), capture_logs() as logged, pytest.raises(Overloaded):
        await result_of(DetachedTasks("test").start(work()))
    assert not logged


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


def running(
    *runs: Callable[[asyncio.Event], Awaitable[object]], ready: asyncio.Event | None = None
) -> AbstractAsyncContextManager[None]:
    """Jobs called a, b … that run these functions, of a service that is ready."""
    if ready is None:
        ready = asyncio.Event()
        ready.set()
    jobs = [PeriodicJob(name, SHORT_S, run) for name, run in zip("ab", runs, strict=False)]
    return run_periodic_jobs(*jobs, ready=ready, failure_of=failure_of)


@pytest.fixture(autouse=True)
def long_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in progress get longer than any test to finish."""
    monkeypatch.setattr(tasks, "FINISH_S", 300.0)


def failures(work: str) -> float:
    return REGISTRY.get_sample_value("tally_background_work_failures_total", {"work": work}) or 0


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
    """Before, the end waits for none of them."""
    is_ready = asyncio.Event()
    for _ in range(2):
        run = Run()
        async with running(run, ready=is_ready):
            for _ in range(10):
                await asyncio.sleep(0)
            assert bool(run.count) is is_ready.is_set()
        is_ready.set()


async def test_a_job_whose_first_run_hangs_has_the_time_of_its_start() -> None:
    def time_of(work: str) -> float | None:
        name = "tally_background_work_success_timestamp_seconds"
        return REGISTRY.get_sample_value(name, {"work": work})

    begun = asyncio.Event()

    async def hangs(stopping: asyncio.Event) -> None:
        begun.set()
        await stopping.wait()

    ready = asyncio.Event()
    ready.set()
    job = PeriodicJob("hangs_at_first", SHORT_S, hangs)
    async with run_periodic_jobs(job, ready=ready, failure_of=failure_of):
        await begun.wait()
        assert time_of("hangs_at_first")


@pytest.mark.parametrize(
    ("errors", "logged_errors"),
    [
        ([LookupError("x")], ["LookupError('x')"]),
        ([LookupError("x"), LookupError("x")], ["LookupError('x')"]),
        ([LookupError("x"), LookupError("y")], ["LookupError('x')", "LookupError('y')"]),
        ([asyncio.CancelledError("inside")], ["CancelledError('inside')"]),
        ([Overloaded(pool="jobs"), Overloaded()], ["OVERLOADED"]),
        ([ConnectionRefusedError(), ConnectionResetError()], ["DATABASE_UNAVAILABLE"]),
        ([ConnectionRefusedError(), Overloaded()], ["DATABASE_UNAVAILABLE", "OVERLOADED"]),
    ],
    ids=[
        "once",
        "repeated",
        "changed",
        "cancelled inside",
        "full pool",
        "database away",
        "away, then full",
    ],
)
async def test_a_failure_is_logged_when_it_begins_or_changes(
    errors: list[BaseException], logged_errors: list[str]
) -> None:
    """A failure ends no job. The same one is logged once, and counted each time."""
    run = Run(*errors)
    before = failures("a")
    with capture_logs() as logged:
        async with running(run):
            await run.succeeded.wait()
    assert [line["error"] for line in logged if line["event"] == FAILED] == logged_errors
    assert run.count > len(errors)
    assert failures("a") == before + len(errors)


async def test_a_run_in_progress_is_finished_with_stopping_set() -> None:
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


async def test_runs_that_hang_are_cancelled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "FINISH_S", 0.05)
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a driver that closes a connection to a silent server."""
    monkeypatch.setattr(tasks, "FINISH_S", 0.05)
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
