"""Where commands wait for a row that another transaction holds, each row's crowd on its own.

A row held for seconds must not stall everyone else's batch, so its commands leave the lane, queue
here in order of arrival, and are decided in transactions that do wait, a few at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from common.lanes.entries import Entry, Limits

C = TypeVar("C")


class Apart(Generic[C]):
    """The queues of held rows."""

    def __init__(
        self,
        decide: Callable[[Hashable, list[Entry[C]]], Awaitable[None]],
        lost: Callable[[list[Entry[C]], BaseException], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        limits: Limits,
    ) -> None:
        """``decide`` ends every entry given to it, by telling it or putting it back with wait."""
        self._decide = decide
        self._lost = lost
        self._spawn = spawn
        self._limits = limits
        self._queues: dict[Hashable, deque[Entry[C]]] = {}
        self._slots = asyncio.Semaphore(limits.apart_max)

    def wait(self, entry: Entry[C], row: Hashable) -> None:
        """Queue the entry for the row."""
        queue = self._queues.get(row)
        if queue is None:
            queue = self._queues[row] = deque()
            self._spawn(self._run(row, queue))
        queue.append(entry)

    async def _run(self, row: Hashable, queue: deque[Entry[C]]) -> None:
        entries: list[Entry[C]] = []
        try:
            while queue:
                # A place is taken for one transaction and given up again, so that a few rows held
                # for long do not keep the places from all others.
                async with self._slots:
                    size = min(len(queue), self._limits.batch_max)
                    entries = [queue.popleft() for _ in range(size)]
                    await self._decide(row, entries)
        except BaseException as error:
            self._lost([*entries, *queue], error)
            if not isinstance(error, Exception):
                raise
        finally:
            del self._queues[row]
