"""What this replica has read of products, kept for a limited time and in a limited number.

For GetProduct and ListProducts only: whatever decides about stock reads the locked row.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from order_service.model.product import Product

PRODUCTS_MAX: Final = 10_000
"""Products kept, in all pages together: about 10 MB."""


@dataclass(frozen=True, slots=True)
class _Kept:
    read_s: float
    """When the read began, by the monotonic clock: what it found is not older."""
    products: Sequence[Product]


class ProductCache:
    """What was read, by what was asked for. What was read first leaves first."""

    def __init__(self, age_s_max: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``age_s_max``: how old what is returned may be, in seconds; 0 keeps nothing."""
        self._age_s_max = age_s_max
        self._clock = clock
        self._kept: dict[Hashable, _Kept] = {}
        self._size = 0

    async def read(
        self, asked: Hashable, load: Callable[[], Awaitable[Sequence[Product]]]
    ) -> Sequence[Product]:
        """What was read not too long ago, or is read now."""
        if not self._age_s_max:
            return await load()
        now_s = self._clock()
        kept = self._kept.get(asked)
        if kept is not None and now_s - kept.read_s <= self._age_s_max:
            return kept.products
        products = await load()
        self._keep(asked, _Kept(now_s, products))
        return products

    def _keep(self, asked: Hashable, read: _Kept) -> None:
        """Keep it, unless a later read is kept. What does not exist is not kept."""
        known = self._kept.get(asked)
        if not read.products or (known is not None and known.read_s > read.read_s):
            return
        self._drop(asked)
        self._kept[asked] = read
        self._size += len(read.products)
        while self._size > PRODUCTS_MAX:
            self._drop(next(iter(self._kept)))

    def _drop(self, asked: Hashable) -> None:
        dropped = self._kept.pop(asked, None)
        self._size -= len(dropped.products) if dropped is not None else 0
