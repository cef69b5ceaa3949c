"""Work is overdue by the time in which its service ran."""

from __future__ import annotations

import pytest

from tests.integration.audit.books import PAY_D
from tests.integration.audit.conftest import Planted

pytestmark = pytest.mark.asyncio(loop_scope="module")
STUCK = "'2000-01-01'"
"""The time of work that nothing moves."""


def running(*seconds: int, pause_s: int) -> str:
    """SQL: the service has run for these times, with a pause before each, the last until now."""
    ranges, after_s = [], 0
    for one in reversed(seconds):
        ranges.append(
            f"tstzrange(beat_time - interval '{after_s + one} seconds',"
            f" beat_time - interval '{after_s} seconds')"
        )
        after_s += one + pause_s
    return f"UPDATE heartbeat SET runs = tstzmultirange({', '.join(ranges)});"


@pytest.mark.parametrize(
    ("runs", "overdue"),
    [
        (running(59, pause_s=0), False),
        (running(61, pause_s=0), True),
        (running(29, 30, pause_s=20), False),
        (running(30, 30, 1, pause_s=20), True),
        (running(30, 31, pause_s=86_400), True),
    ],
    ids=["59 s", "61 s", "59 s in two runs", "61 s in three runs", "61 s and a day's pause"],
)
async def test_work_is_overdue_by_the_time_in_which_its_service_ran(
    planted: Planted, runs: str, *, overdue: bool
) -> None:
    stuck = f"UPDATE sagas SET lease_until = {STUCK} WHERE saga_id = '{PAY_D}';"
    found = await planted.pass_with("order", stuck + runs)
    late = [key for _, key in found.differences if key.startswith("overdue: saga")]
    assert bool(late) is overdue, found.differences


async def test_work_gets_its_time_after_a_pause(planted: Planted) -> None:
    """It was due before the pause, and the service had run for a day before that."""
    due = (
        "UPDATE sagas SET lease_until = beat_time - interval '1 hour' FROM heartbeat"
        f" WHERE saga_id = '{PAY_D}';"
    )
    found = await planted.pass_with("order", due + running(86_400, 50, pause_s=3_600))
    assert not found.differences
