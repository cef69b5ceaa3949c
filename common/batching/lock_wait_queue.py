"""Commands that wait for a row which another transaction has locked, one queue per row.

A row that is locked for seconds must not delay the other commands of a batch. So its commands leave
the lane and wait here in order of arrival. They are decided in transactions that wait for the lock,
a few transactions at a time (``common.db.bulkheads``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from common.batching.outcomes import Limits, QueuedCommand
from common.batching.queues import WEIGHT_MAX, fill
from common.db.database import Database

C = TypeVar("C")
R = TypeVar("R")


class LockWaitQueue(Generic[C, R]):
    """The queues of all locked rows of a lane."""

    def __init__(
        self,
        decide: Callable[[Hashable, list[QueuedCommand[C, R]]], Awaitable[None]],
        fail: Callable[[list[QueuedCommand[C, R]], BaseException], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
        limits: Limits,
        database: Database,
    ) -> None:
        """``decide`` replies to every entry it gets, or puts it back with ``wait``."""
        self._decide = decide
        self._fail = fail
        self._spawn = spawn
        self._limits = limits
        self._database = database
        self._queues: dict[Hashable, deque[QueuedCommand[C, R]]] = {}
        self._held: set[Hashable] = set()
        self._slots = asyncio.Semaphore(limits.blocked_max)

    def wait(self, entry: QueuedCommand[C, R], row: Hashable) -> None:
        """Queue the entry for the row."""
        if entry.locked_since is None:
            entry.locked_since = asyncio.get_running_loop().time()
        queue = self._queues.get(row)
        if queue is None:
            queue = self._queues[row] = deque()
            self._held.add(row)
            self._spawn(self._run(row, queue))
        queue.append(entry)

    @property
    def has_held(self) -> bool:
        """Whether there is a row that ``is_held``."""
        return bool(self._held)

    def is_held(self, row: Hashable) -> bool:
        """Whether commands wait for the row, and those decided last found it locked."""
        return row in self._held

    async def _run(self, row: Hashable, queue: deque[QueuedCommand[C, R]]) -> None:
        entries: list[QueuedCommand[C, R]] = []
        stuck = False
        try:
            while queue:
                # A place is taken for one transaction only, so that a few rows locked for long do
                # not keep all places from other rows.
                async with self._place(stuck=stuck):
                    entries = []
                    fill(entries, queue, self._limits.batch_max, WEIGHT_MAX)
                    await self._decide(row, entries)
                    stuck = any(not entry.left for entry in entries)
                # It may be locked again while later commands still wait for it.
                if stuck:
                    self._held.add(row)
                else:
                    self._held.discard(row)
        except BaseException as error:
            self._fail([*entries, *queue], error)
            if not isinstance(error, Exception):
                raise
        finally:
            del self._queues[row]
            self._held.discard(row)

    @asynccontextmanager
    async def _place(self, *, stuck: bool) -> AsyncIterator[None]:
        """A place for one transaction. Rows that are stuck keep no slot from the others."""
        if stuck:
            async with self._database.bulkheads.for_lock_wait(stuck=True):
                yield
        else:
            async with self._slots, self._database.bulkheads.for_lock_wait(stuck=False):
                yield
