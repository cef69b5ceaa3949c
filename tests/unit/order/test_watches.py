"""Followers of orders in one replica: each later version once, and forgotten at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from order_service.use_cases.watch import Watches
from tests.unit.order.test_order import NOW, order

FIRST = order()
SECOND = FIRST.begin_payment(NOW)
THIRD = SECOND.return_to_pending("NO_MONEY", NOW)
LAST = THIRD.cancel("why", NOW)


@pytest.fixture
def watches() -> Watches:
    unused: Any = None  # a replica's own changes need no database
    return Watches(unused)


async def test_a_follower_gets_each_later_version_once_and_in_order(watches: Watches) -> None:
    followed = watches.follow(FIRST)
    assert await anext(followed) == FIRST
    waiting = asyncio.ensure_future(anext(followed))
    await asyncio.sleep(0)
    assert not waiting.done()
    watches.report(SECOND)
    assert await waiting == SECOND
    # A poll may return what was true before the last report.
    watches.report(THIRD)
    watches.report(SECOND)
    assert await anext(followed) == THIRD
    watches.report(LAST)
    assert [version async for version in followed] == [LAST]


async def test_a_later_follower_gets_the_latest_version(watches: Watches) -> None:
    early = watches.follow(FIRST)
    await anext(early)
    watches.report(SECOND)
    late = watches.follow(FIRST)
    assert [await anext(late), await anext(late)] == [FIRST, SECOND]
    later = watches.follow(THIRD)
    assert await anext(later) == THIRD
    assert await anext(early) == THIRD


async def test_an_order_without_followers_is_forgotten(watches: Watches) -> None:
    one, two = watches.follow(FIRST), watches.follow(FIRST)
    await anext(one)
    await anext(two)
    await one.aclose()
    assert FIRST.order_id in watches._watched
    waiting = asyncio.ensure_future(anext(two))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not watches._watched
    await watches.poll()
