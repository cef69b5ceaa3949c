"""The writes of one saga's task, repeated while the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from common.backoff import Backoff
from common.errors import Refusal
from common.rpc.status import is_retryable
from order_service.errors import SagaLost
from order_service.model.order import Order
from order_service.saga.journal import SagaJournal
from order_service.saga.running import RunningSaga

T = TypeVar("T")

BACKOFF: Final = Backoff(0.05, 1.0)
"""Between attempts at a write, besides those of the lane."""


class SagaWrites:
    """Writes sagas, for one lease at most.

    Until the lease ends no other replica can continue the saga, so that leaving it earlier gains
    nothing. Each write raises SagaLost, and the last refusal.
    """

    def __init__(self, journal: SagaJournal) -> None:
        self._journal = journal
        self.stopping = False
        """Set when the replica stops: nothing is repeated then."""

    async def write(self, running: RunningSaga, *, lease_s: float) -> None:
        """Journal the saga as it is (``SagaJournal.write``)."""
        began_s = asyncio.get_running_loop().time()
        await self._repeat(running, lambda: self._journal.write(running.saga, lease_s=lease_s))
        running.lease_until_s = began_s + lease_s

    async def close(self, running: RunningSaga) -> Order:
        """End the saga and move its order; the order."""
        return await self._repeat(running, lambda: self._journal.close(running.saga))

    async def note(self, running: RunningSaga, reason: str) -> None:
        """Show on the order why its saga cannot end."""
        await self._repeat(running, lambda: self._journal.note(running.saga, reason))

    async def _repeat(self, running: RunningSaga, write: Callable[[], Awaitable[T]]) -> T:
        # Once: a heartbeat that succeeds meanwhile must not prolong the repeats.
        until_s = running.lease_until_s
        attempt = 0
        while True:
            attempt += 1
            try:
                return await write()
            except SagaLost:
                raise
            except Refusal as refusal:
                pause_s = BACKOFF.pause_s(attempt)
                left_s = until_s - asyncio.get_running_loop().time()
                if not is_retryable(refusal) or pause_s >= left_s or self.stopping:
                    raise
            await asyncio.sleep(pause_s)
