"""Followers of orders in one replica: woken by news, never told the past, forgotten in the end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from common.ids import new_id
from common.money import Money
from order_service.model.order import CreateOrder, Line, Order
from order_service.model.product import CreateProduct, Product
from order_service.use_cases.watch import Watches

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def new_order() -> Order:
    tea = Product.create(CreateProduct("Tea", Money("KRW", 1), 9, "c1"), new_id(), NOW)
    command = CreateOrder("ann", (Line(tea.product_id, 1),), "o1")
    return Order.create(command, new_id(), [tea], now=NOW, expiry=timedelta(1))


def watches() -> Watches:
    database: Any = None  # what a replica tells itself needs no database
    return Watches(database)


async def test_a_follower_is_told_news_in_order_and_nothing_twice() -> None:
    watched, first = watches(), new_order()
    second = first.begin_payment(NOW)
    third = second.return_to_pending("NO_MONEY", NOW)
    last = third.cancel("why", NOW)
    followed = watched.follow(first)
    assert await anext(followed) == first
    waiting = asyncio.ensure_future(anext(followed))
    await asyncio.sleep(0)
    assert not waiting.done()
    watched.tell(second)
    assert await waiting == second
    # A poll may come back with what was true before the last notice.
    watched.tell(third)
    watched.tell(second)
    assert await anext(followed) == third
    watched.tell(last)
    assert [order async for order in followed] == [last]


async def test_whoever_comes_later_is_told_the_latest() -> None:
    watched, first = watches(), new_order()
    second = first.begin_payment(NOW)
    early = watched.follow(first)
    await anext(early)
    watched.tell(second)
    late = watched.follow(first)
    assert [await anext(late), await anext(late)] == [first, second]
    later = watched.follow(second.return_to_pending("NO_MONEY", NOW))
    assert (await anext(later)).version == 3
    assert (await anext(early)).version == 3


async def test_an_order_that_nobody_follows_any_more_is_forgotten() -> None:
    watched, first = watches(), new_order()
    one, two = watched.follow(first), watched.follow(first)
    await anext(one)
    await anext(two)
    await one.aclose()
    assert first.order_id in watched._watched
    waiting = asyncio.ensure_future(anext(two))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not watched._watched
    await watched.poll()
