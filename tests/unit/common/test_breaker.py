"""When the circuit opens, what closes it, and what counts as a failure."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from common.breaker import CircuitBreaker, CircuitOpen
from common.metrics import REGISTRY

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
        """Whether a call, which would end so, is made; it was known before."""
        refuses = self.breaker.refuses
        made = await self._made(end)
        assert made is not refuses
        return made

    async def _made(self, end: type[BaseException] | None) -> bool:
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
    monkeypatch.setattr(time, "monotonic", calls.time)
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


async def test_calls_that_began_before_it_opened_change_nothing(calls: Calls) -> None:
    for end in (OK, FAIL):
        calls.breaker = CircuitBreaker("test", failures_max=3, open_s=OPEN_S)
        early = calls.breaker.call()
        await early.__aenter__()
        for failure in OPENED:
            await calls.made(failure)
        calls.now += OPEN_S - 1
        await early.__aexit__(end, end and end(), None)
        assert not await calls.made()
        calls.now += 2
        assert await calls.made()


@pytest.mark.parametrize("step_s", [-3_600.0, 3_600.0])
async def test_a_step_of_the_wall_clock_moves_no_pause(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    for failure in OPENED:
        await calls.made(failure)
    now_s = time.time() + step_s
    monkeypatch.setattr(time, "time", lambda: now_s)
    assert not await calls.made()
    calls.now += OPEN_S + 1
    assert await calls.made()


def is_open() -> float | None:
    return REGISTRY.get_sample_value("tally_circuit_open", {"circuit": "logged"})


async def test_a_circuit_is_logged_when_it_opens_and_when_it_closes(calls: Calls) -> None:
    """Not for each call that it refuses, and not for a trial that fails."""
    calls.breaker = CircuitBreaker("logged", failures_max=3, open_s=OPEN_S)
    assert is_open() == 0
    with capture_logs() as logged:
        for end in (*OPENED, OK, FAIL):
            await calls.made(end)
            calls.now += OPEN_S / 2
        assert is_open() == 1
        calls.now += OPEN_S
        assert is_open() == 0, "the next call is made"
        await calls.made(FAIL)
        calls.now += OPEN_S + 1
        await calls.made(OK)
        await calls.made(OK)
    events = [(line["event"], line["circuit"]) for line in logged]
    assert events == [("circuit_opened", "logged"), ("circuit_closed", "logged")]
    assert logged[0]["failures"] == 3
