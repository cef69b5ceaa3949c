"""When the circuit opens, what closes it, and what counts as a failure."""

from __future__ import annotations

import asyncio
import traceback
from unittest import mock

import pytest
from purgatory.domain import model

from common.breaker import CircuitBreaker, CircuitOpen

OPEN_S = 30.0
OK, FAIL, CANCEL = None, OSError, asyncio.CancelledError
OPENED = [FAIL] * 3


class Calls:
    """Calls through a breaker that opens after three failures, and its clock."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker("test", failures_max=3, open_s=OPEN_S)
        self.now = 1_000.0

    def time(self) -> float:
        return self.now

    async def made(self, end: type[BaseException] | None = OK) -> bool:
        """Whether a call, which would end so, is made."""
        try:
            async with self.breaker.call():
                if end is not None:
                    raise end
        except CircuitOpen:
            return False
        except (FAIL, CANCEL):
            pass
        return True


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(model, "time", mock.Mock(time=calls.time))
    return calls


@pytest.mark.parametrize(
    ("before", "made"),
    [
        pytest.param([FAIL, FAIL], True, id="two failures"),
        pytest.param(OPENED, False, id="three"),
        pytest.param([FAIL, FAIL, OK, FAIL, FAIL], True, id="interrupted"),
        pytest.param([CANCEL] * 5, True, id="cancelled"),
        pytest.param([FAIL, FAIL, CANCEL, FAIL], False, id="interrupted by a cancelled call"),
        pytest.param([*OPENED, OPEN_S - 1], False, id="before the time is over"),
        pytest.param([*OPENED, OPEN_S + 1, OK], True, id="a trial succeeded"),
        pytest.param([*OPENED, OPEN_S + 1, FAIL], False, id="a trial failed"),
        pytest.param([*OPENED, OPEN_S + 1, CANCEL], True, id="a trial was cancelled"),
    ],
)
async def test_a_call_is_made_unless_the_circuit_is_open(
    calls: Calls, before: list[type[BaseException] | float | None], made: bool
) -> None:
    """Seconds in ``before`` pass between the calls; each of these is made."""
    for each in before:
        if isinstance(each, float):
            calls.now += each
        else:
            assert await calls.made(each)
    assert await calls.made() is made


@pytest.mark.parametrize("cancelled_before", [False, True])
async def test_one_call_at_a_time_is_a_trial(calls: Calls, cancelled_before: bool) -> None:
    for failure in OPENED:
        await calls.made(failure)
    calls.now += OPEN_S + 1
    if cancelled_before:
        await calls.made(CANCEL)
    async with calls.breaker.call():
        assert [await calls.made(), await calls.made()] == [False, False]
    assert [await calls.made(), await calls.made()] == [True, True]


async def test_refused_calls_leave_no_growing_traceback(calls: Calls) -> None:
    """The library raises one shared exception, whose traceback would grow with every call."""
    for failure in OPENED:
        await calls.made(failure)
    lengths = []
    for _ in range(5):
        with pytest.raises(CircuitOpen) as refused:
            async with calls.breaker.call():
                raise AssertionError("not entered")
        shared = refused.value.__context__
        assert shared is not None
        lengths.append(len(traceback.extract_tb(shared.__traceback__)))
    assert len(set(lengths)) == 1
