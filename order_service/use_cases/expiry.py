"""The sweep of orders whose time to be paid has passed.

It goes through all of them, the longest overdue first, and past those that it cannot expire: a row
that another transaction holds is tried in the next sweep, an order that fails after a pause. Only
a page that cannot be read ends it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from common.backoff import Backoff, Postponed
from common.db.database import Database
from common.db.errors import failure_of
from common.db.repeat import read
from common.paging import TimePosition
from order_service.model.order import ExpireOrder
from order_service.store import order as store
from order_service.use_cases.order_lane import OrderLane

SWEEP_ROWS: Final = 256
"""Overdue orders expired at once: one batch of the lane."""
_FIRST: Final = TimePosition(
    datetime(1970, 1, 1, tzinfo=UTC), "00000000-0000-0000-0000-000000000000"
)
_RETRY: Final = Backoff(2.0, 600.0)
"""Pauses of an order that cannot be expired."""

_log = structlog.stdlib.get_logger()


class Expiry:
    """Expires overdue orders, as one replica does it."""

    def __init__(self, database: Database, lane: OrderLane) -> None:
        self._database = database
        self._lane = lane
        self._postponed = Postponed(_RETRY)

    async def run(self, stopping: asyncio.Event | None = None) -> int:
        """Expire the orders whose time has passed; returns how many this replica expired.

        Ends after the batch in which ``stopping`` is set. Raises DatabaseUnavailable or Overloaded
        if the orders that are due cannot be read.
        """
        total = 0
        last = _FIRST
        while True:
            due = await read(self._database, partial(store.read_due, after=last, size=SWEEP_ROWS))
            expired = await asyncio.gather(
                *(self._expire(one.id) for one in due if self._postponed.is_due(one.id))
            )
            total += sum(expired)
            if len(due) < SWEEP_ROWS or (stopping is not None and stopping.is_set()):
                return total
            last = due[-1]

    async def _expire(self, order_id: str) -> bool:
        """Whether this replica has expired the order."""
        try:
            result = await self._lane.submit(ExpireOrder(order_id))
        except Exception as error:  # noqa: BLE001 - the other orders expire all the same
            # DATABASE_UNAVAILABLE too may be due to this order alone, if its statements are slow.
            if self._postponed.fail(order_id):
                _log.error("order_not_expired", order_id=order_id, error=failure_of(error))
            return False
        self._postponed.forget(order_id)
        return result.value is not None
