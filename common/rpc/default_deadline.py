"""The server's own deadline for calls whose clients set none.

All such calls have the same limit, so they expire in the order in which they began: one queue and
one timer serve all of them. A timer per call would cost each call its creation and cancellation,
though hardly any timer ever fires.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from common.deadlines import DeadlineExceeded

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class DeadlineEntry:
    """A running call and the time at which it expires. ``task`` is None once the call has ended."""

    task: asyncio.Task[object] | None
    at: float
    expired: bool = False


class DefaultDeadline:
    """Ends calls that run longer than ``limit_s``."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._queue: deque[DeadlineEntry] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, call: Awaitable[T]) -> T:
        """Await the call in the current task. Raises DeadlineExceeded if it expires."""
        entry = self._add()
        try:
            return await call
        except asyncio.CancelledError:
            # Expired and cancelled by its client as well: the client's cancellation counts.
            if not entry.expired or entry.task is None or entry.task.uncancel():
                raise
            raise DeadlineExceeded from None
        finally:
            entry.task = None

    def _add(self) -> DeadlineEntry:
        loop = asyncio.get_running_loop()
        entry = DeadlineEntry(asyncio.current_task(), loop.time() + self._limit_s)
        queue = self._queue
        while queue and queue[0].task is None:
            queue.popleft()
        queue.append(entry)
        if self._timer is None:
            self._timer = loop.call_at(entry.at, self._expire)
        return entry

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        queue = self._queue
        while queue and (queue[0].task is None or queue[0].at <= now):
            entry = queue.popleft()
            if entry.task is not None:
                entry.expired = True
                entry.task.cancel()
        self._timer = loop.call_at(queue[0].at, self._expire) if queue else None
