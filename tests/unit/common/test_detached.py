"""Detached work: it outlives its caller, and ends before what it needs is closed."""

from __future__ import annotations

import asyncio

import pytest

from common import deadlines
from common.errors import Overloaded
from common.tasks import DetachedTasks, finished_within, result_of


async def test_a_cancelled_caller_leaves_the_work_running() -> None:
    detached = DetachedTasks("test")
    go = asyncio.Event()

    async def work() -> str:
        await go.wait()
        return "done"

    task = detached.begin(work())
    caller = asyncio.create_task(result_of(task))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not task.done()
    go.set()
    assert await result_of(task) == "done"
    assert len(detached) == 0


async def test_the_callers_deadline_is_not_the_works() -> None:
    detached = DetachedTasks("test")

    async def work() -> float | None:
        return deadlines.remaining()

    with deadlines.within(0.5):
        assert await result_of(detached.begin(work())) is None


async def test_a_refusal_reaches_those_who_wait_for_it() -> None:
    detached = DetachedTasks("test")

    async def work() -> None:
        raise Overloaded

    with pytest.raises(Overloaded):
        await result_of(detached.begin(work()))


async def test_waiting_for_a_while_does_not_end_the_work() -> None:
    detached = DetachedTasks("test")
    go = asyncio.Event()
    task = detached.begin(go.wait())
    assert not await finished_within(task, 0.001)
    assert not await finished_within(task, -1)
    go.set()
    assert await finished_within(task, 10)
    await detached.close(10)


async def test_closing_waits_for_what_runs_and_for_what_that_begins() -> None:
    detached = DetachedTasks("test")
    told = []

    async def second() -> None:
        await asyncio.sleep(0)
        told.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        detached.begin(second())
        told.append("first")

    detached.begin(first())
    await detached.close(10)
    assert told == ["first", "second"]


async def test_closing_ends_what_does_not_end_in_time() -> None:
    detached = DetachedTasks("test")
    task = detached.begin(asyncio.Event().wait())
    await detached.close(0.01)
    assert task.cancelled()
    assert len(detached) == 0
