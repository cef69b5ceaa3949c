"""Single reads in batches: while one statement runs, the next callers wait for the next statement.

A read that every call makes before its write would otherwise take a pooled connection per call, and
many calls would queue for connections before the lane whose load this read reduces.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from common.db.engines import Database
from common.db.repeat import read
from common.db.statements import Connection

K = TypeVar("K")
V = TypeVar("V")

BATCH_MAX: Final = 256


class BatchLoader(Generic[K, V]):
    """One kind of read in this replica. Each value is read after it was asked for."""

    def __init__(
        self,
        database: Database,
        read: Callable[[Connection, Sequence[K]], Awaitable[Sequence[V]]],
    ) -> None:
        """``read`` returns one value per key, in their order, from one statement."""
        self._database = database
        self._read = read
        self._queue: deque[tuple[K, asyncio.Future[V]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def load(self, key: K) -> V:
        """The value for the key. Raises DatabaseUnavailable or Overloaded."""
        loop = asyncio.get_running_loop()
        value: asyncio.Future[V] = loop.create_future()
        self._queue.append((key, value))
        if self._task is None:
            # In a context of its own: the task outlives the call that happened to start it.
            self._task = loop.create_task(self._run(), context=contextvars.Context())
        return await value

    async def close(self) -> None:
        """Wait until no read is running."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        batch: list[tuple[K, asyncio.Future[V]]] = []
        try:
            while self._queue:
                size = min(len(self._queue), BATCH_MAX)
                batch = [self._queue.popleft() for _ in range(size)]
                batch = [(key, value) for key, value in batch if not value.done()]
                try:
                    await self._load(batch)
                except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
                    _fail(batch, error)
        except BaseException as error:
            # Such as a CancelledError that the driver raised: nobody may wait for ever.
            _fail([*batch, *self._queue], error)
            self._queue.clear()
            raise
        finally:
            self._task = None

    async def _load(self, batch: Sequence[tuple[K, asyncio.Future[V]]]) -> None:
        if not batch:
            return
        keys = [key for key, _ in batch]
        values = await read(self._database, lambda connection: self._read(connection, keys))
        assert len(values) == len(keys), "one value per key"
        for (_, value), loaded in zip(batch, values, strict=True):
            if not value.done():
                value.set_result(loaded)


def _fail(batch: Iterable[tuple[K, asyncio.Future[V]]], error: BaseException) -> None:
    for _, value in batch:
        if not value.done():
            value.set_exception(error)
