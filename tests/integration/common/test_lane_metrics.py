"""What a lane measures: the oldest wait, waits for locks, their hold, and refusals for rows."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from common.batching import batch, lane_metrics
from common.batching.outcomes import Limits, Outcome, RowLocked, VersionConflict
from common.db.database import Database
from common.errors import ConflictRetriesExhausted
from common.metrics import REGISTRY
from tests.integration.common.lanes import (
    BusyLocks,
    Insert,
    Inserts,
    lane_of,
)
from tests.support.waits import until_true


def value(name: str) -> float:
    """A sample of the lane of these tests."""
    return REGISTRY.get_sample_value(f"tally_lane_{name}", {"lane": "test"}) or 0.0


async def test_the_oldest_wait_is_that_of_the_first_command(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(lane_metrics, "time", SimpleNamespace(monotonic=lambda: clock.now))
    decide = Inserts()
    decide.go.clear()
    lane = lane_of(database, decide)
    assert value("oldest_wait_seconds") == 0
    first = asyncio.ensure_future(lane.submit(Insert(1)))
    await decide.begun.wait()
    clock.now = 103.0
    bulk = asyncio.ensure_future(lane.submit_bulk([Insert(2)]))
    await asyncio.sleep(0)
    clock.now = 107.0
    assert value("oldest_wait_seconds") == 7, "of the command that is being decided"
    first.cancel()
    assert value("oldest_wait_seconds") == 7, "it is in the lane until it is decided"
    decide.go.set()
    assert await bulk == [-2]
    assert value("oldest_wait_seconds") == 0


@pytest.mark.parametrize(
    ("busy", "outcome", "waits"),
    [
        pytest.param((), None, 0, id="free"),
        pytest.param(("busy",), None, 1, id="lock in Redis busy"),
        pytest.param((), RowLocked("row"), 1, id="row locked"),
        pytest.param(("busy",), RowLocked("row"), 1, id="both"),
    ],
)
async def test_a_command_that_finds_its_lock_held_is_one_wait(
    database: Database, busy: tuple[str, ...], outcome: Outcome[int] | None, waits: int
) -> None:
    def found(numbers: list[int], wait_for_locks: bool) -> list[Outcome[int]] | None:
        locked = outcome is not None and not wait_for_locks
        return [outcome if locked else -number for number in numbers]  # type: ignore[misc]

    before = value("lock_wait_seconds_count")
    lane = lane_of(database, Inserts(found), locks=BusyLocks(*busy))  # type: ignore[arg-type]
    assert await lane.submit(Insert(1)) == -1
    await lane.close()
    assert value("lock_wait_seconds_count") - before == waits


@dataclass
class Clock:
    """The clock of holds, which the test sets."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(batch, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("first", "holds"),
    [
        pytest.param(None, 1, id="committed"),
        pytest.param(RowLocked("row"), 2, id="blocked: once more, waiting for the lock"),
        pytest.param(ConnectionResetError(), 2, id="rolled back and run again"),
    ],
)
async def test_each_transaction_of_a_batch_is_one_hold_of_its_rows(
    database: Database, clock: Clock, first: Outcome[int] | Exception | None, holds: int
) -> None:
    outcomes = [first]

    def decide(numbers: list[int], _wait: bool) -> list[Outcome[int]] | None:
        clock.now += 3.0
        outcome = outcomes.pop() if outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return None if outcome is None else [outcome for _ in numbers]

    before = value("lock_hold_seconds_count"), value("lock_hold_seconds_sum")
    lane = lane_of(database, Inserts(decide))  # type: ignore[arg-type]
    assert await lane.submit(Insert(1)) == -1
    await lane.close()
    assert value("lock_hold_seconds_count") - before[0] == holds
    assert value("lock_hold_seconds_sum") - before[1] == 3.0 * holds


async def test_a_batch_that_waits_for_a_connection_holds_no_rows(
    database: Database, clock: Clock
) -> None:
    before = value("lock_hold_seconds_count"), value("lock_hold_seconds_sum")
    lane = lane_of(database, Inserts())
    async with AsyncExitStack() as sessions:
        for _ in range(database.lanes.size):
            await sessions.enter_async_context(database.lanes.connect())
        call = asyncio.ensure_future(lane.submit(Insert(1)))
        waiting = {"pool": "lanes"}
        await until_true(lambda: REGISTRY.get_sample_value("tally_pool_waiting", waiting))
        clock.now += 30.0
    assert await call == -1
    await lane.close()
    assert value("lock_hold_seconds_count") - before[0] == 1
    assert value("lock_hold_seconds_sum") == before[1]


@pytest.mark.parametrize("found", [RowLocked("row"), VersionConflict()], ids=["row", "version"])
async def test_commands_refused_for_rows_that_others_keep_are_counted(
    database: Database, found: RowLocked | VersionConflict
) -> None:
    before = value("retries_exhausted_total")
    decide = Inserts(lambda numbers, _wait: [found for _ in numbers])
    lane = lane_of(database, decide, limits=Limits(blocked_rounds_max=2))
    with pytest.raises(ConflictRetriesExhausted):
        await lane.submit(Insert(1))
    assert value("retries_exhausted_total") - before == 1
