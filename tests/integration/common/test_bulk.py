"""Bulk calls in a lane: what they get of its batches and places, and what their callers get."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from common import deadlines
from common.batching.bulk import decided_within_s
from common.batching.lane import Lane
from common.batching.outcomes import Limits, Outcome, RowLocked
from common.batching.queues import Queues
from common.db.database import Database
from common.errors import Overloaded, RequestInProgress
from tests.integration.common.lanes import (
    BusyLocks,
    Insert,
    Inserts,
    Outcomes,
    TooLarge,
    lane_of,
    stored,
    submit_all,
)
from tests.support.bulk_waits import BulkWaits
from tests.support.waits import until_true

SINGLE = range(10, 200)
BULK = range(200, 1_000)


async def submit_bulk(lane: Lane[Insert, int], numbers: Sequence[int]) -> list[int | Exception]:
    return await lane.submit_bulk([Insert(number) for number in numbers])


async def while_a_batch_is_held(
    database: Database, limits: Limits | None = None
) -> tuple[Inserts, Lane[Insert, int], asyncio.Future[int]]:
    """A lane whose first batch, of the number 0, waits for ``go``."""
    decide = Inserts()
    decide.go.clear()
    lane = lane_of(database, decide, limits=limits)
    held = asyncio.ensure_future(lane.submit(Insert(0)))
    await decide.begun.wait()
    return decide, lane, held


async def until_entered(lane: Lane[Insert, int], commands: int) -> None:
    await until_true(lambda: lane._queues.arrived >= commands)


# -- single calls beside it ----------------------------------------------------------------------


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "none"])
async def test_bulk_items_take_half_of_a_batch_while_single_calls_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, guard: bool
) -> None:
    """The single calls come when all commands of the bulk call wait."""
    if not guard:
        monkeypatch.setattr(Queues, "_of", lambda queues, _: queues._single)
    decide, lane, held = await while_a_batch_is_held(database)
    bulk = asyncio.ensure_future(submit_bulk(lane, BULK))
    await until_entered(lane, len(BULK))
    singles = asyncio.ensure_future(submit_all(lane, SINGLE))
    await until_entered(lane, len(BULK) + len(SINGLE))
    decide.go.set()
    assert await bulk == [-number for number in BULK]
    assert await singles == [-number for number in SINGLE]
    assert await held == 0
    of_bulk = [sum(number in BULK for number in batch) for batch in decide.batches[1:]]
    of_singles = [sum(number in SINGLE for number in batch) for batch in decide.batches[1:]]
    if guard:
        assert of_singles == [128, 62, 0, 0, 0]
        assert of_bulk == [128, 128, 256, 256, 32]
    else:
        assert of_singles[:3] == [0, 0, 0], "they wait for nearly all of it"


async def test_single_calls_are_accepted_while_bulk_calls_fill_their_places(
    database: Database,
) -> None:
    limits = Limits(depth_max=128, bulk_depth_max=64, chunk_max=32)
    decide, lane, held = await while_a_batch_is_held(database, limits)
    calls = [asyncio.ensure_future(submit_bulk(lane, BULK[at : at + 100])) for at in (0, 100)]
    await until_entered(lane, 64)
    singles = asyncio.ensure_future(submit_all(lane, range(1, 128)))
    await until_entered(lane, 64 + 127)
    with pytest.raises(Overloaded):
        await lane.submit(Insert(128))
    assert lane._queues.arrived == 64 + 127, "two chunks of a bulk call"
    decide.go.set()
    assert await singles == [-number for number in range(1, 128)]
    outcomes = await asyncio.gather(*calls)
    assert outcomes == [[-number for number in BULK[at : at + 100]] for at in (0, 100)]
    assert await held == 0


async def test_commands_with_a_busy_lock_keep_out_neither_single_nor_bulk_calls(
    database: Database,
) -> None:
    decide = Inserts()
    lane = lane_of(database, decide, locks=BusyLocks("busy"))
    bulk = asyncio.ensure_future(submit_bulk(lane, [1, 2, 3]))
    assert await lane.submit(Insert(4)) == -4
    assert await bulk == [-1, -2, -3]
    assert decide.batches[-1] == [1], "decided without the lock, after the others"


# -- outcomes ------------------------------------------------------------------------------------


async def test_each_command_has_its_own_outcome_in_the_order_of_the_call(
    database: Database,
) -> None:
    """One is refused, one waits for a row and is decided last."""
    released = asyncio.Event()

    async def locked(numbers: Sequence[int], wait_for_locks: bool) -> Outcomes:
        if wait_for_locks:
            await released.wait()
            return [-number for number in numbers]
        released.set()
        refused: dict[int, Outcome[int]] = {1: RowLocked("row"), 5_000: TooLarge()}
        return [refused.get(number, -number) for number in numbers]

    lane = lane_of(database, Inserts(locked))
    refused, *others = await submit_bulk(lane, [5_000, 1, *BULK])
    assert isinstance(refused, TooLarge)
    assert others == [-1, *(-number for number in BULK)]


async def test_a_violated_constraint_refuses_one_command_alone(database: Database) -> None:
    lane = lane_of(database, Inserts())
    *others, refused = await submit_bulk(lane, [*range(200), 5_000])
    assert isinstance(refused, TooLarge)
    assert others == [-number for number in range(200)]
    assert await stored(database) == list(range(200))


# -- its end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left_s", "within_s"), [(10.0, 9.75), (1.0, 0.75), (0.4, 0.3)])
def test_a_bulk_call_returns_before_its_deadline(left_s: float, within_s: float) -> None:
    assert decided_within_s(left_s) == pytest.approx(within_s)


async def test_what_is_not_decided_at_the_deadline_is_in_progress(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in a batch is committed all the same, what waits is not begun any more."""
    decide = Inserts()
    lane = lane_of(database, decide, limits=Limits(batch_max=128))
    decide.go.clear()
    waits = BulkWaits(monkeypatch)
    call = asyncio.ensure_future(submit_bulk(lane, BULK))
    await decide.begun.wait()
    waits.end()
    outcomes = await call
    assert {type(outcome) for outcome in outcomes} == {RequestInProgress}
    assert len(outcomes) == len(BULK)
    decide.go.set()
    await lane.submit(Insert(1))
    assert await stored(database) == [1, *BULK[:128]]
    assert await submit_bulk(lane, [2]) == [-2], "its places are free again"


async def test_a_bulk_call_that_waits_for_its_places_ends_in_time(database: Database) -> None:
    limits = Limits(bulk_depth_max=128)
    decide, lane, held = await while_a_batch_is_held(database, limits)
    first = asyncio.ensure_future(submit_bulk(lane, BULK[:128]))
    await until_entered(lane, 128)
    with deadlines.within(0.1):  # whatever happens before it: no place becomes free
        outcomes = await submit_bulk(lane, BULK[128:])
    assert {type(outcome) for outcome in outcomes} == {RequestInProgress}
    decide.go.set()
    assert await first == [-number for number in BULK[:128]]
    assert await held == 0
    assert await stored(database) == [0, *BULK[:128]]


async def test_commands_of_a_caller_that_left_are_not_begun(database: Database) -> None:
    limits = Limits(bulk_depth_max=128)
    decide, lane, held = await while_a_batch_is_held(database, limits)
    call = asyncio.ensure_future(submit_bulk(lane, BULK))
    await until_entered(lane, 128)
    call.cancel()
    decide.go.set()
    assert await held == 0
    assert await submit_bulk(lane, [1]) == [-1], "its place is free again"
    assert await stored(database) == [0, 1]


async def test_a_closed_lane_refuses_a_bulk_call(database: Database) -> None:
    lane = lane_of(database, Inserts())
    await lane.close()
    with pytest.raises(Overloaded):
        await submit_bulk(lane, [1])
