"""The server's own deadline for calls whose clients set none.

All such calls have the same limit, so they fall due in the order in which they came: one queue and
one timer for all of them. A timer for each would cost every call its making and its cancelling,
though hardly any ever goes off.
"""

from __future__ import annotations

import asyncio
from collections import deque


class DeadlineEntry:
    """A call under the server's deadline."""

    __slots__ = ("at", "late", "task")

    def __init__(self, task: asyncio.Task[object] | None, at: float) -> None:
        self.task = task
        self.at = at
        self.late = False

    def end(self) -> None:
        """The call is over, in time or not."""
        self.task = None


class DefaultDeadline:
    """Cancels the calls that outlast ``limit_s``, and marks them late."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._queue: deque[DeadlineEntry] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> DeadlineEntry:
        """Put the running task under the deadline; ``end`` it when the call is over."""
        loop = asyncio.get_running_loop()
        watched = DeadlineEntry(asyncio.current_task(), loop.time() + self._limit_s)
        queue = self._queue
        while queue and queue[0].task is None:
            queue.popleft()
        queue.append(watched)
        if self._timer is None:
            self._timer = loop.call_at(watched.at, self._fire)
        return watched

    def _fire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        queue = self._queue
        while queue and (queue[0].task is None or queue[0].at <= now):
            watched = queue.popleft()
            if watched.task is not None:
                watched.late = True
                watched.task.cancel()
        self._timer = loop.call_at(queue[0].at, self._fire) if queue else None
