"""A deadline is known in the call or block that has it, and nowhere else."""

from __future__ import annotations

import asyncio

import pytest

from common import deadlines
from common.errors import DeadlineTooShort


async def test_without_a_deadline_the_steps_own_limit_counts() -> None:
    assert deadlines.remaining() is None
    assert deadlines.timeout_for(3.0) == 3.0


async def test_the_shorter_of_limit_and_deadline_counts() -> None:
    with deadlines.within(10.0):
        assert deadlines.timeout_for(3.0) == 3.0
        assert 9.0 < deadlines.timeout_for(30.0) <= 10.0


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


async def test_calls_at_the_same_time_do_not_see_each_others_deadlines() -> None:
    async def call(left_s: float) -> float | None:
        deadlines.start(left_s)
        await asyncio.sleep(0)
        return deadlines.remaining()

    left = await asyncio.gather(call(10.0), call(100.0))
    assert [round(left_s or 0, -1) for left_s in left] == [10.0, 100.0]
    assert deadlines.remaining() is None
