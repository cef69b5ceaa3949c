"""Clients that follow orders. However many they are, a replica asks the database once per round.

Changes made by this replica are reported at once; those of others are found by comparing versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from itertools import islice
from typing import Final

from common import failpoints
from common.db.database import Database
from common.db.repeat import read
from order_service.model.order import SETTLED, Order
from order_service.store.order import read_changed

POLL_ROWS_MAX: Final = 1_000
"""Orders compared in one statement."""


class Watches:
    """The orders that clients of this replica follow."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[str, _WatchedOrder] = {}

    async def follow(self, order: Order) -> AsyncGenerator[Order]:
        """This order, then each later version, until the order is settled."""
        watched = self._watched.setdefault(order.order_id, _WatchedOrder(order))
        watched.update(order)
        watched.followers += 1
        try:
            yield order
            while order.state not in SETTLED:
                order = await watched.after(order.version)
                yield order
        finally:
            watched.followers -= 1
            if not watched.followers:
                del self._watched[order.order_id]

    def report(self, order: Order) -> None:
        """Report a committed change of an order."""
        if failpoints.enabled:
            failpoints.hit("publish.order.before")
        if (watched := self._watched.get(order.order_id)) is not None:
            watched.update(order)
        if failpoints.enabled:
            failpoints.hit("publish.order.after")

    async def poll(self) -> None:
        """Find what other replicas have changed."""
        known = iter([(order_id, watched.latest) for order_id, watched in self._watched.items()])
        while part := dict(islice(known, POLL_ROWS_MAX)):
            changed = await read(self._database, partial(read_changed, known=part))
            for order in changed:
                self.report(order)


class _WatchedOrder:
    """The latest known version of one order, and those who wait for the next."""

    def __init__(self, order: Order) -> None:
        self.latest = order
        self.followers = 0
        self._changed = asyncio.Event()

    def update(self, order: Order) -> None:
        """Wake the followers, unless the version is known: a poll may be slower than a report."""
        if order.version > self.latest.version:
            self.latest = order
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def after(self, version: int) -> Order:
        while self.latest.version <= version:
            await self._changed.wait()
        return self.latest
