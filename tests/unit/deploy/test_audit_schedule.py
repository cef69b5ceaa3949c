"""When the next audit is due, and what two verdicts together say."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Final

import pytest

from deploy.audit import schedule
from deploy.audit.checkpoint import Full, Memory, Verdict
from deploy.audit.metrics import breaches
from deploy.audit.schedule import FULL, RECENT, Schedule, next_time
from deploy.audit.settings import AuditSettings

NOON: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR_S: Final = 3_600.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(schedule, "wall_clock", clock)
    return clock


def settings() -> AuditSettings:
    return AuditSettings(checkpoint="unused")


def full(start: datetime, **changes: object) -> Full:
    values = {"start": start.timestamp(), "completion": start.timestamp(), "breaches": 0}
    return Full.model_validate({**values, "snapshots": {}, **changes})


def recent(start: datetime, **changes: object) -> Verdict:
    values = {"start": start.timestamp(), "completion": start.timestamp(), "breaches": 0}
    return Verdict.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (NOON, datetime(2026, 3, 2, 3, tzinfo=UTC)),
        (datetime(2026, 3, 1, 2, 59, tzinfo=UTC), datetime(2026, 3, 1, 3, tzinfo=UTC)),
        (datetime(2026, 3, 1, 3, tzinfo=UTC), datetime(2026, 3, 2, 3, tzinfo=UTC)),
    ],
    ids=["later", "today", "at that moment"],
)
def test_night_is_the_next_one(after: datetime, expected: datetime) -> None:
    assert next_time(after, time(3)) == expected


def test_first_audit_is_full_and_at_once(clock: Clock) -> None:
    due = Schedule.of(settings(), Memory())
    assert due.next() == (FULL, 0.0)
    due.ended(FULL, well=True)
    assert due.next() == (RECENT, HOUR_S)
    due.ended(RECENT, well=True)
    clock.pass_s(14 * HOUR_S)
    due.ended(RECENT, well=True)
    assert due.next() == (RECENT, HOUR_S)
    clock.pass_s(HOUR_S)
    due.ended(RECENT, well=True)
    assert due.next() == (FULL, 0.0)


def test_nothing_is_recent_until_there_is_a_full_verdict(clock: Clock) -> None:
    due = Schedule.of(settings(), Memory())
    due.ended(FULL, well=False)
    assert due.next() == (FULL, 300.0)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (Memory(full=full(NOON - timedelta(hours=9))), (RECENT, 0.0)),
        (
            Memory(full=full(NOON - timedelta(hours=9)), recent=recent(NOON)),
            (RECENT, HOUR_S),
        ),
        (Memory(full=full(NOON - timedelta(hours=10)), recent=recent(NOON)), (FULL, 0.0)),
    ],
    ids=["an hour was missed", "both are remembered", "the night was missed"],
)
def test_restart_makes_up_for_what_was_missed(
    clock: Clock, memory: Memory, expected: tuple[str, float]
) -> None:
    assert Schedule.of(settings(), memory).next() == expected


def test_full_audit_that_fails_does_not_stop_the_recent_ones(clock: Clock) -> None:
    memory = Memory(full=full(NOON - timedelta(days=2)), recent=recent(NOON))
    due = Schedule.of(settings(), memory)
    for _ in range(12):
        scope, wait_s = due.next()
        assert scope == FULL
        clock.pass_s(wait_s)
        due.ended(FULL, well=False)
    assert due.next()[0] == RECENT


def test_recent_audit_that_fails_is_repeated_soon(clock: Clock) -> None:
    due = Schedule.of(settings(), Memory(full=full(NOON - timedelta(hours=1))))
    due.ended(RECENT, well=False)
    assert due.next() == (RECENT, 300.0)


LATER: Final = NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (Memory(), 0),
        (Memory(full=full(NOON, breaches=2)), 2),
        (Memory(full=full(LATER), recent=recent(NOON, breaches=2)), 0),
        (Memory(full=full(NOON, breaches=2), recent=recent(LATER)), 2),
        (
            Memory(
                full=full(NOON, breaches=2, keys=["a", "b"]),
                recent=recent(LATER, breaches=2, keys=["b", "c"]),
            ),
            3,
        ),
    ],
    ids=["none", "full", "recent before the full one", "clean since", "one again and one new"],
)
def test_breaches_are_those_of_the_full_verdict_and_the_new_ones(
    memory: Memory, expected: int
) -> None:
    assert breaches(memory.full, memory.recent) == expected
