"""When a batch waits for more callers: on a busy processor, and while that finds some."""

from __future__ import annotations

import pytest

from common.batching import gathering
from common.batching.gathering import (
    BUSY_SHARE,
    GATHER_FROM,
    IN_VAIN_MAX,
    MEASURE_S,
    TRY_EVERY,
    Gathering,
    Processor,
)


class Times:
    """The clock, and the processor time that the process has used."""

    def __init__(self) -> None:
        self.now = self.used = 0.0

    def pass_(self, seconds: float, *, share: float) -> None:
        self.now += seconds
        self.used += seconds * share


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def processor(times: Times) -> Processor:
    return Processor(lambda: times.now, lambda: times.used)


@pytest.fixture
def waits(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> Gathering:
    monkeypatch.setattr(gathering, "GATHER_S", 0.0)
    return Gathering(processor)


def test_the_process_is_busy_by_what_it_used_since_the_last_measurement(
    times: Times, processor: Processor
) -> None:
    assert not processor.busy
    times.pass_(MEASURE_S, share=BUSY_SHARE)
    assert processor.busy
    times.pass_(MEASURE_S / 2, share=0)
    assert processor.busy, "measured too short a time ago"
    times.pass_(MEASURE_S / 2, share=0)
    assert not processor.busy


async def waits_of(waits: Gathering, batches: int, *, callers: int) -> int:
    """How many of the batches waited, if each finds so many callers."""
    waited = 0
    for _ in range(batches):
        if await waits.wait():
            waited += 1
            waits.found(callers)
    return waited


@pytest.mark.parametrize(
    ("share", "callers", "expected"),
    [
        (0.4, 100, 0),  # time to spare
        (0.9, GATHER_FROM - 1, 4),  # one caller after the other: a wait finds nobody
        (0.9, GATHER_FROM, 3 * TRY_EVERY + 4),  # from the first try on
    ],
)
async def test_batches_wait_while_a_busy_processor_saves_work_by_it(
    times: Times, waits: Gathering, share: float, callers: int, expected: int
) -> None:
    times.pass_(1.0, share=share)
    batches = 4 * (TRY_EVERY + 1)
    assert await waits_of(waits, batches, callers=callers) == expected


async def test_waits_end_when_they_find_nobody_or_the_processor_has_time(
    times: Times, waits: Gathering
) -> None:
    times.pass_(1.0, share=0.9)
    await waits_of(waits, TRY_EVERY + 1, callers=GATHER_FROM)
    assert await waits_of(waits, TRY_EVERY, callers=1) == IN_VAIN_MAX
    await waits_of(waits, TRY_EVERY, callers=GATHER_FROM)
    times.pass_(1.0, share=0.1)
    assert await waits_of(waits, 1, callers=GATHER_FROM) == 0
