"""What a lane does with its locks in Redis: it waits for busy ones, and frees its own in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence

import pytest

from common.batching.outcomes import Limits
from common.db.database import Database
from common.errors import DatabaseUnavailable, Refusal
from common.locking.locks import Grant, Keys, NoLocks
from common.metrics import REGISTRY
from tests.integration.common.lanes import (
    BUSY,
    BusyLocks,
    Insert,
    Inserts,
    InsertUnder,
    Thing,
    TooLarge,
    lane_of,
    stored,
    submit_all,
)
from tests.support.time_limits import LONG_S


async def test_a_busy_redis_lock_delays_a_command_and_refuses_none(database: Database) -> None:
    before = ends_of_waits()
    decide = Inserts()
    lane = lane_of(database, decide, locks=BusyLocks("busy"))
    assert await submit_all(lane, [1, 2, 3]) == [-1, -2, -3]
    assert decide.batches == [[2, 3], [1]], "decided without the lock, after the others"
    assert ends_of_waits() - before == {"limit": 1}


class ObservedLocks(NoLocks):
    """Every key is free; ``freed`` has what was committed when a lock was freed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.freed: list[list[int]] = []

    async def acquire(self, wanted: Collection[Keys]) -> Grant:
        return Grant("token", frozenset(key for keys in wanted for key in keys))

    async def release(self, grant: Grant) -> None:
        self.freed.append(await stored(self._database))


async def test_redis_locks_are_freed_after_the_commit(database: Database) -> None:
    """A lock that is freed earlier lets the next owner read rows that are about to change."""
    locks = ObservedLocks(database)
    lane = lane_of(database, Inserts(), locks=locks)
    assert await lane.submit(Insert(1)) == -1
    await lane.close()
    assert locks.freed == [[1]]


async def test_a_command_takes_all_of_its_keys_or_holds_none(database: Database) -> None:
    locks = BusyLocks("thing:busy")
    held: list[set[str]] = []

    def note_held(_numbers: Sequence[int], _wait: bool) -> None:
        held.append(set(locks.held))

    lane = lane_of(database, Inserts(note_held), locks=locks)
    first = lane.submit(InsertUnder(2, (Thing("x"),)))
    waits = lane.submit(InsertUnder(3, (Thing("y"), BUSY)))
    assert [*await asyncio.gather(first, waits)] == [-2, -3]
    await lane.close()
    assert held[0] == {"free", "thing:x"}, "what waits holds none of its keys"
    assert not locks.held


def ends_of_waits() -> Counter[str]:
    """How many waits for busy keys have ended so far, by how."""
    return Counter(
        {
            end: int(REGISTRY.get_sample_value("tally_lock_waits_total", {"end": end}) or 0)
            for end in ("released", "limit")
        }
    )


LONG: Limits = Limits(busy_key_s=LONG_S)
"""A command waits for its lock as long as a test may last."""


async def test_a_command_waits_for_the_release_of_its_lock(database: Database) -> None:
    """It asks Redis once, and again after the release; nothing else waits for it."""
    before = ends_of_waits()
    locks = BusyLocks("busy")
    decide = Inserts()
    lane = lane_of(database, decide, locks=locks, limits=LONG)
    waits = asyncio.ensure_future(lane.submit(Insert(1)))
    for number in range(2, 6):
        assert await lane.submit(Insert(number)) == -number
    assert [asked for asked in locks.asked if "busy" in asked] == [{"busy", "free"}]
    locks.free("busy")
    assert await waits == -1
    assert locks.asked[-1] == {"busy"}
    assert ends_of_waits() - before == {"released": 1}
    assert decide.batches == [[2], [3], [4], [5], [1]]


async def test_later_commands_of_a_busy_lock_wait_without_asking(database: Database) -> None:
    locks = BusyLocks("thing:busy")
    decide = Inserts()
    lane = lane_of(database, decide, locks=locks, limits=LONG)
    waits = []
    for number in range(2, 6):
        waits.append(asyncio.ensure_future(lane.submit(InsertUnder(1 - number, (BUSY,)))))
        assert await lane.submit(Insert(number)) == -number
    assert sum("thing:busy" in asked for asked in locks.asked) == 1
    locks.pass_on("thing:busy")
    for number in range(6, 9):
        assert await lane.submit(Insert(number)) == -number
    assert sum("thing:busy" in asked for asked in locks.asked) == 2
    locks.free("thing:busy")
    assert await asyncio.gather(*waits) == [1, 2, 3, 4]
    assert decide.batches[-1] == [-1, -2, -3, -4], "in order of arrival"


async def test_a_lane_that_is_closed_decides_what_waits_for_a_lock(database: Database) -> None:
    lane = lane_of(database, Inserts(), locks=BusyLocks("busy"))
    waits = asyncio.ensure_future(lane.submit(Insert(1)))
    await asyncio.sleep(0)
    await lane.close()
    assert waits.done()
    assert await waits == -1


async def test_what_is_refused_early_takes_no_lock_and_no_batch(database: Database) -> None:
    """The check is made each time that a command waits for its keys."""
    asked: list[list[int]] = []

    async def refuse_early(commands: Sequence[Insert]) -> dict[int, Refusal]:
        asked.append([one.number for one in commands])
        return {
            at: TooLarge()
            for at, one in enumerate(commands)
            if one.number > 9 or (one.number == 3 and len(asked) > 1)
        }

    decide = Inserts()
    lane = lane_of(database, decide, locks=BusyLocks("thing:busy"), refuse_early=refuse_early)
    calls = [Insert(10), Insert(2), InsertUnder(3, (BUSY,))]
    outcomes = await asyncio.gather(*map(lane.submit, calls), return_exceptions=True)
    assert [type(one) for one in outcomes] == [TooLarge, int, TooLarge]
    assert decide.batches == [[2]]
    assert asked[-1] == [3], "the one that waited for its keys"


async def test_redis_locks_of_an_unknown_commit_are_left_to_expire(database: Database) -> None:
    """The lost transaction may still be committed while another owner reads."""

    def lose_connection(_numbers: Sequence[int], _wait: bool) -> None:
        raise ConnectionResetError

    locks = ObservedLocks(database)
    lane = lane_of(database, Inserts(lose_connection), locks=locks)
    with pytest.raises(DatabaseUnavailable):
        await lane.submit(Insert(1))
    await lane.close()
    assert locks.freed == []
