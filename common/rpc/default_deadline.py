"""The time limit of calls whose clients set none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class DefaultDeadline:
    """Ends calls after the same time for all. One timer serves them.

    ``asyncio.timeout`` would cost such a call about as much as parsing and validating it.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._ends_s: dict[asyncio.Task[object], float] = {}
        """When each call's time is over, on the loop's clock; the first one first."""
        self._ended: set[asyncio.Task[object]] = set()
        """Calls that were cancelled since their time is over."""
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, call: Awaitable[T]) -> T:
        """The call's result. Raises TimeoutError, after cancelling it, when its time is over."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._ends_s[task] = ends_s = loop.time() + self.limit_s
        if self._timer is None:
            self._timer = loop.call_at(ends_s, self._end_those_due)
        try:
            return await call
        except asyncio.CancelledError:
            # Not if its client has hung up as well.
            if task in self._ended and task.cancelling() == 1:
                raise TimeoutError from None
            raise
        finally:
            del self._ends_s[task]
            if task in self._ended:
                self._ended.remove(task)
                task.uncancel()

    def _end_those_due(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        for task, ends_s in self._ends_s.items():
            if ends_s > now:
                self._timer = loop.call_at(ends_s, self._end_those_due)
                return
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()
