"""Lanes side by side: which commands share a batch, and what a bulk call gets of several lanes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from common.batching.lane import Lane
from common.batching.lane_group import LaneGroup
from common.batching.lane_metrics import LaneMetrics
from common.db.database import Database, open_pools
from common.errors import Overloaded
from common.locking.locks import NoLocks
from common.metrics import REGISTRY
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.common.lanes import STRATEGIES, Insert, Inserts, stored
from tests.support.waits import until_true


@pytest.fixture
async def database(core_urls: ServiceUrls) -> AsyncIterator[Database]:
    """With a session for each lane."""
    opened = open_pools(core_urls.runtime, application_name="group test", pool_size=8)
    yield opened
    await opened.close()


def group_of(database: Database, decide: Inserts) -> LaneGroup[Insert, int]:
    """Even numbers have one key, and odd ones the other."""

    def open_lane(metrics: LaneMetrics[Insert, int]) -> Lane[Insert, int]:
        return Lane("group", database, decide, NoLocks(), STRATEGIES, metrics=metrics)

    return LaneGroup("group", open_lane, lambda command: command.number % 2)


def commands_inside() -> float | None:
    return REGISTRY.get_sample_value("tally_lane_commands", {"lane": "group"})


async def test_a_batch_of_other_keys_does_not_wait(database: Database) -> None:
    decide = Inserts()
    decide.go.clear()
    lanes = group_of(database, decide)
    calls = [asyncio.ensure_future(lanes.submit(Insert(2)))]
    await decide.begun.wait()
    calls += [asyncio.ensure_future(lanes.submit(Insert(number))) for number in (4, 3, 6, 5)]
    await until_true(lambda: len(decide.batches) == 2)
    # Those of the first key are decided after its batch, in order.
    assert decide.batches == [[2], [3, 5]]
    assert commands_inside() == 5
    decide.go.set()
    assert await asyncio.gather(*calls) == [-2, -4, -3, -6, -5]
    assert decide.batches == [[2], [3, 5], [4, 6]]
    assert commands_inside() == 0


async def test_a_bulk_call_has_its_outcomes_in_order(database: Database) -> None:
    lanes = group_of(database, Inserts())
    numbers = [*range(300, 0, -1)]
    outcomes = await lanes.submit_bulk([Insert(number) for number in numbers])
    assert outcomes == [-number for number in numbers]
    assert await stored(database) == sorted(numbers)


async def test_every_lane_of_a_group_is_closed(database: Database) -> None:
    lanes = group_of(database, Inserts())
    await lanes.close()
    for number in (1, 2):
        with pytest.raises(Overloaded):
            await lanes.submit(Insert(number))
        with pytest.raises(Overloaded):
            await lanes.submit_bulk([Insert(number)])
