"""Which errors are not retried, and how long the pauses of retries are.

How many attempts there are, and what is counted: ``test_clients``.
"""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from common import deadlines
from common.backoff import Backoff
from common.errors import DatabaseUnavailable, RequestIdReused
from common.rpc.retry import BACKOFF, call_with_retries


class Call:
    """Raises the error once, and then returns the number of calls."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls == 1:
            raise self.error
        return self.calls


@pytest.mark.parametrize("error", [RequestIdReused(), ValueError("a bug"), KeyboardInterrupt()])
async def test_any_other_error_is_raised_at_once(error: BaseException) -> None:
    call = Call(error)
    with pytest.raises(type(error)):
        await call_with_retries("charge", call)
    assert call.calls == 1


async def test_no_pause_is_begun_that_ends_after_the_deadline() -> None:
    call = Call(DatabaseUnavailable())
    with deadlines.within(0.5), pytest.raises(DatabaseUnavailable):
        await call_with_retries("charge", call)
    assert call.calls == 1


async def test_a_pause_is_the_refusals_own_delay_and_the_backoff() -> None:
    refusal = DatabaseUnavailable()
    longest = (refusal.retry_after_s or 0) + BACKOFF.first_s * BACKOFF.jitter[1]
    with deadlines.within(longest + 0.5), capture_logs() as logged:
        assert await call_with_retries("charge", Call(refusal)) == 2
    [line] = logged
    assert line["event"] == "repeating"
    assert refusal.retry_after_s < line["wait_s"] <= longest


@pytest.mark.parametrize(
    ("attempt", "pause_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 10.0), (10_000, 10.0)]
)
def test_pauses_double_up_to_a_maximum(attempt: int, pause_s: float) -> None:
    """However many attempts there were: 2 to the power of 10,000 is no float."""
    assert Backoff(0.5, 10.0, jitter=(1.0, 1.0)).pause_s(attempt) == pause_s


def test_pauses_differ_within_the_jitter() -> None:
    pauses = {Backoff(0.5, 10.0).pause_s(2) for _ in range(100)}
    assert len(pauses) > 1
    assert all(0.5 <= pause <= 1.0 for pause in pauses)
