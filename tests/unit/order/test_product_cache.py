"""The cache of products: how old what it returns may be, and how much it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from common.money import Money
from order_service.model.product import Product
from order_service.use_cases import product_cache
from order_service.use_cases.product_cache import ProductCache

TIME = datetime(2026, 3, 1, tzinfo=UTC)
TEA = Product("tea", "Tea", Money("KRW", 100), 9, 0, 0, 1, TIME, TIME)


class Shelf:
    """A cache, its clock, and the version of every product as the database has it."""

    def __init__(self, age_s_max: float = 5.0) -> None:
        self.now_s = 0.0
        self.version = 1
        self.reads = 0
        self.cache = ProductCache(age_s_max, clock=lambda: self.now_s)

    async def load(self) -> Sequence[Product]:
        self.reads += 1
        return (replace(TEA, version=self.version),)

    async def get(self, asked: str = "tea") -> int:
        """The version that the cache returns."""
        [product] = await self.cache.read(asked, self.load)
        return product.version


async def test_what_was_read_is_returned_until_it_is_too_old() -> None:
    shelf = Shelf()
    seen = []
    for shelf.version, shelf.now_s in enumerate((0.0, 4.9, 5.0, 5.1, 10.1, 10.2)):
        seen.append(await shelf.get())
    assert seen == [0, 0, 0, 3, 3, 5]


async def test_without_an_age_nothing_is_kept() -> None:
    shelf = Shelf(0.0)
    assert [await shelf.get(), await shelf.get()] == [1, 1]
    assert shelf.reads == 2


async def test_the_age_counts_from_the_begin_of_the_read() -> None:
    shelf = Shelf()

    async def slowly() -> Sequence[Product]:
        read = await shelf.load()
        shelf.now_s += 4.0
        return read

    await shelf.cache.read("tea", slowly)
    shelf.now_s, shelf.version = 5.5, 2
    assert await shelf.get() == 2


async def test_a_read_that_ends_late_replaces_no_later_one() -> None:
    shelf = Shelf()
    go_on = asyncio.Event()

    async def late() -> Sequence[Product]:
        read = await shelf.load()
        await go_on.wait()
        return read

    first = asyncio.ensure_future(shelf.cache.read("tea", late))
    await asyncio.sleep(0)
    shelf.now_s, shelf.version = 1.0, 2
    assert await shelf.get() == 2
    go_on.set()
    assert (await first)[0].version == 1
    assert await shelf.get() == 2


def of(products: int) -> Callable[[], Coroutine[Any, Any, Sequence[Product]]]:
    async def load() -> Sequence[Product]:
        return (TEA,) * products

    return load


async def test_what_does_not_exist_and_what_fails_is_not_kept() -> None:
    shelf = Shelf()

    async def failing() -> Sequence[Product]:
        raise LookupError

    assert list(await shelf.cache.read("tea", of(0))) == []
    with pytest.raises(LookupError):
        await shelf.cache.read("tea", failing)
    assert await shelf.get() == 1


async def test_what_was_read_first_leaves_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_cache, "PRODUCTS_MAX", 6)
    shelf = Shelf()
    await shelf.get("one")
    await shelf.cache.read("page", of(3))
    await shelf.get("two")
    await shelf.cache.read("other page", of(2))  # seven: the first leaves
    shelf.reads = 0
    assert [await shelf.get("two"), shelf.reads] == [1, 0]
    await shelf.get("one")  # seven again: the page leaves
    assert shelf.reads == 1
    await shelf.get("page")
    assert shelf.reads == 2
