"""When the circuit opens, what closes it, and what counts as a failure."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from purgatory.domain import model

from common.breaker import CircuitBreaker, CircuitOpen

OPEN_S = 30.0


class Clock:
    now = 1_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(model, "time", clock)
    return clock


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("test", failures_max=3, open_s=OPEN_S)


async def call(breaker: CircuitBreaker, error: BaseException | None = None) -> str:
    """The outcome of one call: '' if it was made and succeeded, or what it raised."""
    try:
        async with breaker.call():
            if error is not None:
                raise error
    except (OSError, asyncio.CancelledError, CircuitOpen) as raised:
        return type(raised).__name__
    return ""


async def calls(breaker: CircuitBreaker, *errors: BaseException | None) -> list[str]:
    return [await call(breaker, error) for error in errors]


async def opened(breaker: CircuitBreaker) -> None:
    assert await calls(breaker, *[OSError()] * 3) == ["OSError"] * 3


@pytest.mark.parametrize(
    ("errors", "opens"),
    [
        ([OSError()] * 2, False),
        ([OSError()] * 3, True),
        ([OSError(), OSError(), None, OSError(), OSError()], False),
        ([asyncio.CancelledError()] * 5, False),
        ([OSError(), OSError(), asyncio.CancelledError(), OSError()], True),
    ],
    ids=["two failures", "three", "interrupted", "cancelled", "interrupted by a cancelled call"],
)
async def test_the_circuit_opens_after_failures_in_a_row(
    breaker: CircuitBreaker, errors: list[BaseException | None], opens: bool
) -> None:
    await calls(breaker, *errors)
    assert await call(breaker) == ("CircuitOpen" if opens else "")


@pytest.mark.parametrize(
    ("trial", "afterwards"),
    [(None, ""), (OSError(), "CircuitOpen")],
    ids=["success closes it", "failure opens it again"],
)
async def test_after_a_while_one_call_is_a_trial(
    breaker: CircuitBreaker, clock: Clock, trial: BaseException | None, afterwards: str
) -> None:
    await opened(breaker)
    clock.now += OPEN_S - 1
    assert await call(breaker) == "CircuitOpen"
    clock.now += 2
    assert await call(breaker, trial) != "CircuitOpen"
    assert await call(breaker) == afterwards


async def test_one_call_at_a_time_is_a_trial(breaker: CircuitBreaker, clock: Clock) -> None:
    await opened(breaker)
    clock.now += OPEN_S + 1
    async with breaker.call():
        assert await calls(breaker, None, None) == ["CircuitOpen"] * 2
    assert await calls(breaker, None, None) == ["", ""]


async def test_a_cancelled_trial_leaves_the_trial_to_the_next_call(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    await opened(breaker)
    clock.now += OPEN_S + 1
    assert await call(breaker, asyncio.CancelledError()) == "CancelledError"
    async with breaker.call():
        assert await call(breaker) == "CircuitOpen"


async def test_refused_calls_leave_no_growing_traceback(breaker: CircuitBreaker) -> None:
    """The library raises one shared exception, whose traceback would grow with every call."""
    await opened(breaker)
    lengths = []
    for _ in range(5):
        with pytest.raises(CircuitOpen) as refused:
            async with breaker.call():
                raise AssertionError("not entered")
        shared = refused.value.__context__
        assert shared is not None
        lengths.append(len(traceback.extract_tb(shared.__traceback__)))
    assert len(set(lengths)) == 1
