"""What a strategy works with in one process: sessions, locks, a lane or a queue, and notes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import asyncpg
from redis.asyncio import Redis

from benchmarks.lab.notes import Notes
from benchmarks.lab.size import Request, Size
from benchmarks.lab.stream_queue import StreamQueue
from common.batching.lane import Lane
from common.locking.key_lease import Hold
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks
from common.locking.lock_errors import LockBusy

LOCK_WAIT_S: Final = 60.0
"""Longer than a cell may take: that a waiter gives up is no part of the comparison."""
TOUCHES: Final = 2
"""How often the interferer moves the version of a row for each request."""
TOUCH: Final = "UPDATE accounts SET version = version + 1, touched = touched + 1 WHERE id = $1"


class Refused(Exception):  # noqa: N818 - a fact, no fault
    """The request is refused: there is nothing left, somebody was faster, or a lock is busy."""


class Conflict(Exception):  # noqa: N818 - a fact, no fault
    """The version had changed each time that the request was tried: its caller gets an error."""


@dataclass(slots=True)
class Tools:
    """One process's; made anew for each cell."""

    size: Size
    process: int
    pool: asyncpg.Pool
    redis: Redis
    waiting: Waiting | None = None
    locks: KeyLocks | None = None
    lane: Lane[object, str] | None = None
    queue: StreamQueue | None = None
    interferer: asyncpg.Pool | None = None
    """Sessions of another program, which writes to the same rows and takes no lock."""
    notes: Notes = field(default_factory=Notes)
    flags: set[int] = field(default_factory=set)
    """Things that are under way in this process."""
    _touched: Counter[int] = field(default_factory=Counter)
    _touching: set[asyncio.Task[object]] = field(default_factory=set)

    async def work(self, *requests: Request) -> None:
        """The slow part of a transaction, in the middle of which the interferer writes."""
        half_s = self.size.work_ms / 2000
        if not half_s:
            return
        await asyncio.sleep(half_s)
        for request in requests:
            self.touch(request)
        await asyncio.sleep(half_s)

    def touch(self, request: Request, times: int = 1) -> None:
        """Let the interferer write, up to TOUCHES times for a request. Does not wait for it."""
        if self.interferer is None:
            return
        for _ in range(min(times, TOUCHES - self._touched[request.number])):
            self._touched[request.number] += 1
            task = asyncio.ensure_future(self.interferer.execute(TOUCH, request.thing))
            self._touching.add(task)
            task.add_done_callback(self._touching.discard)

    async def interfered(self) -> None:
        """Wait until the interferer has written."""
        while self._touching:
            await asyncio.wait(set(self._touching))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with self.pool.acquire() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def row_lock(
        self, query: str, *values: object
    ) -> AsyncIterator[tuple[asyncpg.Connection, list[asyncpg.Record]]]:
        """A transaction that holds the rows which ``query`` locks."""
        async with self.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                with self.notes.waiting():
                    rows = await connection.fetch(query, *values)
                with self.notes.holding():
                    yield connection, rows
                    await transaction.commit()
            except BaseException:
                if not connection.is_closed():
                    await transaction.rollback()
                raise

    @asynccontextmanager
    async def key_lock(self, *things: int) -> AsyncIterator[Hold]:
        """Hold the lock of each thing in Redis. Raises Refused where a busy key is no reason to
        wait. The block checks the hold before it commits."""
        assert self.locks is not None
        wait_s = 0.0 if self.waiting is Waiting.SIMPLE else LOCK_WAIT_S
        holding = self.locks.hold(
            [f"lab:{thing}" for thing in things], wait_s=wait_s, required=True
        )
        try:
            with self.notes.waiting():
                hold = await holding.__aenter__()
        except LockBusy:
            raise Refused from None
        try:
            with self.notes.holding():
                yield hold
        finally:
            await holding.__aexit__(None, None, None)

    async def submit(self, command: object) -> None:
        """Let the lane decide. Raises Refused."""
        assert self.lane is not None
        with self.notes.queued():
            refusal = await self.lane.submit(command)
        if refusal:
            raise Refused

    async def enqueue(self, request: Request) -> None:
        """Let the consumer of the queue decide. Raises Refused."""
        assert self.queue is not None
        with self.notes.queued():
            done = await self.queue.put(request)
        if not done:
            raise Refused
