"""Deadlines of a call or a block.

How long a step may take: ``test_clients``. Calls at the same time: ``test_handlers``.
"""

from __future__ import annotations

import pytest

from common import deadlines
from common.errors import DeadlineTooShort


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
