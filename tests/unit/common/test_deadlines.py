"""Deadlines: of a call or a block, and the server's for calls without one of their own.

How long a step may take: ``test_clients``. Calls at the same time: ``test_handlers``.
"""

from __future__ import annotations

import asyncio

import pytest

from common import deadlines
from common.deadlines import DeadlineExceeded
from common.errors import DeadlineTooShort
from common.rpc.default_deadline import DefaultDeadline


@pytest.mark.parametrize(("left_s", "least_s"), [(0.5, 0.5), (0.0, 0.0), (-5.0, 0.0)])
async def test_too_little_time_is_refused(left_s: float, least_s: float) -> None:
    with deadlines.within(left_s):
        assert (deadlines.remaining() or 0.0) >= 0.0
        with pytest.raises(DeadlineTooShort):
            deadlines.timeout_for(3.0, least_s=least_s)


async def test_a_block_can_have_a_deadline_of_its_own() -> None:
    with deadlines.within(1.0):
        with deadlines.within(None):
            assert deadlines.remaining() is None
        with deadlines.within(100.0):
            assert deadlines.timeout_for(50.0) == 50.0
        left_s = deadlines.remaining()
        assert left_s is not None
        assert left_s <= 1.0


# -- the default -----------------------------------------------------------------------------------


async def never() -> None:
    await asyncio.Event().wait()


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
