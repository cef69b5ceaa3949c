"""Which calls are retried, how often, and after how long a pause."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from common import deadlines
from common.backoff import Backoff
from common.errors import Code, DatabaseUnavailable, Refusal, RemoteRefusal, RequestIdReused
from common.rpc.retry import BACKOFF, call_with_retries

SHORT = Backoff(0.001, 0.001)


class Call:
    """Raises the given errors, one per call, and then returns the number of calls."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def soon(refusal: Refusal) -> Refusal:
    refusal.retry_after_s = 0.001  # type: ignore[misc]
    return refusal


async def test_a_retryable_refusal_is_retried_and_logged() -> None:
    call = Call(soon(DatabaseUnavailable()), RemoteRefusal(Code.UNAVAILABLE, "", "", {}))
    with capture_logs() as logged:
        assert await call_with_retries("charge", call, backoff=SHORT) == 3
    assert [line["event"] for line in logged] == ["repeating"] * 2


@pytest.mark.parametrize("error", [RequestIdReused(), ValueError("a bug"), KeyboardInterrupt()])
async def test_any_other_error_is_raised_at_once(error: BaseException) -> None:
    call = Call(error)
    with pytest.raises(type(error)):
        await call_with_retries("charge", call)
    assert call.calls == 1


async def test_the_last_refusal_is_raised_after_the_last_attempt() -> None:
    refusals = [soon(DatabaseUnavailable()) for _ in range(9)]
    call = Call(*refusals)
    with pytest.raises(DatabaseUnavailable) as caught:
        await call_with_retries("charge", call, attempts_max=3, backoff=SHORT)
    assert caught.value is refusals[2]
    assert call.calls == 3


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
    assert refusal.retry_after_s < logged[0]["wait_s"] <= longest
