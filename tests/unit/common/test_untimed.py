"""The server's deadline for calls without one of their own."""

from __future__ import annotations

import asyncio

import pytest

from common.rpc.default_deadline import DeadlineEntry, DefaultDeadline


async def call(untimed: DefaultDeadline, until: asyncio.Event) -> DeadlineEntry:
    watched = untimed.watch()
    try:
        await until.wait()
    except asyncio.CancelledError:
        if not watched.late:
            raise
    finally:
        watched.end()
    return watched


async def test_a_call_that_outlasts_the_limit_is_cancelled_and_marked_late() -> None:
    watched = await call(DefaultDeadline(0.01), asyncio.Event())
    assert watched.late


async def test_calls_in_time_are_left_alone_while_a_slow_one_between_them_is_not() -> None:
    untimed, done = DefaultDeadline(0.05), asyncio.Event()
    done.set()
    first = await call(untimed, done)
    slow = asyncio.ensure_future(call(untimed, asyncio.Event()))
    last = await call(untimed, done)
    assert (await slow).late
    assert not first.late
    assert not last.late


async def test_another_cancellation_is_not_taken_for_lateness() -> None:
    task = asyncio.ensure_future(call(DefaultDeadline(10.0), asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_second_crowd_is_watched_after_the_first_has_gone() -> None:
    untimed = DefaultDeadline(0.01)
    for _ in range(2):
        late = await asyncio.gather(*(call(untimed, asyncio.Event()) for _ in range(3)))
        assert all(watched.late for watched in late)
