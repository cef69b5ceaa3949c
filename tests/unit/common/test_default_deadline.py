"""The server's deadline for calls without one of their own."""

from __future__ import annotations

import asyncio

import pytest

from common.deadlines import DeadlineExceeded
from common.rpc.default_deadline import DefaultDeadline


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_call_that_runs_longer_than_the_limit_is_ended() -> None:
    with pytest.raises(DeadlineExceeded):
        await DefaultDeadline(0.01).run(never())


async def test_only_the_slow_one_of_several_calls_is_ended() -> None:
    deadline = DefaultDeadline(0.05)
    fast = [asyncio.sleep(0, result=number) for number in range(2)]
    assert await deadline.run(fast[0]) == 0
    slow = asyncio.ensure_future(deadline.run(never()))
    await asyncio.sleep(0)
    assert await deadline.run(fast[1]) == 1
    with pytest.raises(DeadlineExceeded):
        await slow


async def test_another_cancellation_is_not_the_deadline() -> None:
    task = asyncio.ensure_future(DefaultDeadline(10.0).run(never()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_are_ended_again_after_the_queue_was_empty() -> None:
    deadline = DefaultDeadline(0.01)
    for _ in range(2):
        calls = (deadline.run(never()) for _ in range(3))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [DeadlineExceeded] * 3
