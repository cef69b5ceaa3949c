"""What is tried again, how often, and after how long."""

from __future__ import annotations

import pytest
import stamina
from structlog.testing import capture_logs

from common import deadlines
from common.errors import Code, DatabaseUnavailable, Refusal, RemoteRefusal, RequestIdReused
from common.rpc import retry


class Attempts:
    """Raises what it is given, one a call, then answers with the number of calls."""

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


async def test_what_may_pass_is_tried_again() -> None:
    attempts = Attempts(soon(DatabaseUnavailable()), RemoteRefusal(Code.UNAVAILABLE, "", "", {}))
    assert await retry.call_with_retries("charge", attempts, wait_first_s=0.001) == 3


@pytest.mark.parametrize("error", [RequestIdReused(), ValueError("a bug"), KeyboardInterrupt()])
async def test_what_will_not_pass_is_raised_at_once(error: BaseException) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await retry.call_with_retries("charge", attempts)
    assert attempts.calls == 1


async def test_the_last_refusal_is_raised_when_the_attempts_are_used_up() -> None:
    refusals = [soon(DatabaseUnavailable(number=str(number))) for number in range(9)]
    attempts = Attempts(*refusals)
    with pytest.raises(DatabaseUnavailable) as caught:
        await retry.call_with_retries("charge", attempts, attempts_max=3, wait_first_s=0.001)
    assert caught.value is refusals[2]
    assert attempts.calls == 3


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    attempts = Attempts(DatabaseUnavailable())
    with deadlines.within(0.5), pytest.raises(DatabaseUnavailable):
        await retry.call_with_retries("charge", attempts)
    assert attempts.calls == 1


def test_a_peers_wish_is_the_least_wait_and_backoff_grows() -> None:
    for tries in range(1, 10):
        assert 3.0 < retry._wait_s(tries, 0.05, 3.0) <= 3.0 + 1.5 * retry.WAIT_MAX_S
    firsts = [retry._wait_s(1, 0.05, None) for _ in range(100)]
    thirds = [retry._wait_s(3, 0.05, None) for _ in range(100)]
    assert max(firsts) < min(thirds)
    assert len(set(firsts)) > 1
    assert retry._wait_s(50, 0.05, None) <= 1.5 * retry.WAIT_MAX_S


async def test_the_library_itself_logs_nothing() -> None:
    assert stamina.instrumentation.get_on_retry_hooks() == ()
    with capture_logs() as logged:
        await retry.call_with_retries(
            "charge", Attempts(soon(DatabaseUnavailable())), wait_first_s=0.001
        )
    assert [line["event"] for line in logged] == ["repeating"]
