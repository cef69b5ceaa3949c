"""What a lane measures: the oldest wait, waits for locks, their hold, and refusals for rows."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from common.batching import lane_metrics
from common.batching.outcomes import Limits, Outcome, RowLocked, VersionConflict
from common.db.database import Database
from common.errors import ConflictRetriesExhausted
from common.metrics import REGISTRY
from tests.integration.common.test_lane import (
    BusyLocks,
    Insert,
    Inserts,
    ObservedLocks,
    lane_of,
    submit_all,
)


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


async def test_each_batch_is_one_hold_of_its_locks(database: Database) -> None:
    before = value("lock_hold_seconds_count")
    lane = lane_of(database, Inserts(), locks=ObservedLocks(database))
    assert await submit_all(lane, [1, 2]) == [-1, -2]
    await lane.close()
    assert value("lock_hold_seconds_count") - before == 1


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
