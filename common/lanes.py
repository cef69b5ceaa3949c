"""Concurrent commands on one kind of aggregate, decided together.

Commands queue; one batch is in flight; while it commits, the next gathers; the next batch is all
that waits. An idle lane adds no delay: a batch of one is the plain case. So the cost of a
transaction is shared by everyone who would otherwise have queued for it, and the busier the rows,
the larger the share.

    submit ─► admit ─► Redis lock ─► BEGIN ─► decide: rows, replay, model, save ─► COMMIT ─► answer

A service gives the lane one function, ``decide``, that meets steps 4 to 7 of the write path with
set-based statements and returns one outcome per command:

- any value: the caller's answer;
- a Refusal: the caller is refused, the others of the batch are not affected;
- ``Held(row)``: another transaction holds the row. The command waits for it apart from the lane,
  so that the rest of the batch and everyone after it goes on;
- ``Moved()``: the row changed since its version was read. The command goes round again.

The lane owns its tasks: a caller that goes away loses its answer, never the batch its commit.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common import deadlines
from common.errors import ConflictRetriesExhausted, DeadlineTooShort, Overloaded, Refusal
from common.lane_batches import Attempt, commit
from common.locking import Locks

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """Another transaction holds ``row``; decide this command apart, waiting for it."""

    row: Hashable


@dataclass(frozen=True, slots=True)
class Moved:
    """The row's version changed between reading and writing; decide this command again."""


class Decide(Protocol[C_contra]):
    """Steps 4 to 7 for a batch. Never commits; the same batch may be given to it again."""

    async def __call__(
        self, connection: AsyncConnection, commands: Sequence[C_contra], *, patient: bool
    ) -> Sequence[Any]:
        """One outcome per command, in their order.

        ``patient``: wait for held rows (bounded by lock_timeout) instead of answering ``Held``.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """A lane's bounds. Times are the lane's own: one impatient caller never shortens a batch."""

    batch_max: int = 256
    depth_max: int = 4_096
    """Commands waiting or in flight, beyond which callers are told OVERLOADED."""
    least_time_s: float = 0.02
    """Callers with less time than this are refused before anything is begun for them."""
    lock_patience_s: float = 0.05
    """How long a command stays behind for a busy Redis lock before it goes on without it."""
    lock_pause_s: float = 0.003
    rounds_max: int = 10
    """How often a command whose row moved is decided again."""
    backoff_s: float = 0.005
    backoff_max_s: float = 0.1
    apart_max: int = 4
    """Connections for rows that others hold, beside the lane's own."""


@dataclass(slots=True, eq=False)
class Entry(Generic[C]):
    """A command and who waits for it."""

    command: C
    answer: asyncio.Future[Any]
    deadline: float | None
    lock_key: str | None
    behind_since: float | None = None
    rounds: int = 0

    @property
    def waits(self) -> bool:
        return not self.answer.done()

    def tell(self, outcome: Any) -> None:
        if self.answer.done():
            return  # the caller went away; the answer is stored
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


@dataclass(slots=True)
class _Apart(Generic[C]):
    """The commands that wait for one held row."""

    entries: deque[Entry[C]] = field(default_factory=deque)


def _no_key(_: Any) -> str | None:
    return None


class Lane(Generic[C]):
    """The one way through which all writes of one kind of aggregate go in this replica."""

    def __init__(
        self,
        name: str,
        engine: AsyncEngine,
        decide: Decide[C],
        locks: Locks,
        *,
        lock_key: Callable[[C], str | None] = _no_key,
        translate: Callable[[str, C], Refusal | None] = lambda _name, _command: None,
        limits: Limits | None = None,
    ) -> None:
        """``lock_key``: the command's Redis key. ``translate``: constraint name → refusal."""
        self.name = name
        self._limits = limits or Limits()
        self._attempt = Attempt(name, engine, decide, translate)
        self._locks = locks
        self._lock_key = lock_key
        self._queue: deque[Entry[C]] = deque()
        self._apart: dict[Hashable, _Apart[C]] = {}
        self._apart_slots = asyncio.Semaphore(self._limits.apart_max)
        self._depth = 0
        self._running = False
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, command: C) -> Any:
        """Queue the command, wait for its batch, return its outcome or raise its refusal."""
        if self._closed or self._depth >= self._limits.depth_max:
            raise Overloaded(lane=self.name)
        loop = asyncio.get_running_loop()
        left = deadlines.remaining()
        if left is not None and left < self._limits.least_time_s:
            raise DeadlineTooShort
        entry = Entry(
            command,
            loop.create_future(),
            None if left is None else loop.time() + left - self._limits.least_time_s,
            self._lock_key(command),
        )
        self._depth += 1
        self._enqueue(entry)
        try:
            return await entry.answer
        finally:
            self._depth -= 1

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _enqueue(self, entry: Entry[C]) -> None:
        self._queue.append(entry)
        if not self._running:
            self._running = True
            self._spawn(self._run())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: the task outlives the call that happened to start it, and must
        # not carry that call's deadline and log fields into everybody else's batches.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._queue:
            entries = self._gather()
            try:
                await self._batch(entries)
            except Exception as error:  # noqa: BLE001
                # A defect in the lane itself: nobody may be left waiting for ever.
                _log.exception("lane_batch_lost", lane=self.name)
                for entry in entries:
                    entry.tell(error)
        self._running = False

    def _gather(self) -> list[Entry[C]]:
        """The next batch: all that waits, up to its limit, less those who have gone."""
        now = asyncio.get_running_loop().time()
        batch: list[Entry[C]] = []
        while self._queue and len(batch) < self._limits.batch_max:
            entry = self._queue.popleft()
            if not entry.waits:
                continue
            if entry.deadline is not None and entry.deadline < now:
                entry.tell(DeadlineTooShort())
                continue
            batch.append(entry)
        return batch

    async def _batch(self, entries: list[Entry[C]]) -> None:
        grant = None
        if keys := {entry.lock_key for entry in entries if entry.lock_key}:
            grant = await self._locks.acquire(keys)
            entries = self._leave_behind(entries, grant.busy)
        certain = True
        if entries:
            certain = await self._decide(entries, patient=False)
        elif grant is not None:
            await asyncio.sleep(self._limits.lock_pause_s * (0.5 + random.random()))  # noqa: S311
        if grant is not None and certain:
            # If the commit's outcome is unknown the lock is not freed: let its lease lapse.
            await self._locks.release(grant)

    def _leave_behind(self, entries: list[Entry[C]], busy: frozenset[str]) -> list[Entry[C]]:
        """Commands of a busy key wait for a later round, for a short while."""
        if not busy:
            return entries
        now = asyncio.get_running_loop().time()
        going, staying = [], []
        for entry in entries:
            if entry.lock_key in busy:
                if entry.behind_since is None:
                    entry.behind_since = now
                if now - entry.behind_since < self._limits.lock_patience_s:
                    staying.append(entry)
                    continue
            going.append(entry)
        self._queue.extendleft(reversed(staying))
        return going

    async def _decide(self, entries: list[Entry[C]], *, patient: bool) -> bool:
        """Decide and answer; returns whether the outcome of every commit is known."""
        certain = True
        async for done in commit(self._attempt, entries, patient=patient):
            certain = certain and done.certain
            again = []
            for entry, outcome in zip(done.entries, done.outcomes, strict=True):
                if isinstance(outcome, Held):
                    self._wait_apart(entry, outcome.row)
                elif isinstance(outcome, Moved):
                    again.append(entry)
                else:
                    entry.tell(outcome)
            self._go_round(again)
        return certain

    def _go_round(self, entries: list[Entry[C]]) -> None:
        """Decide again those whose row moved, after a pause that holds nothing."""
        going = []
        for entry in entries:
            entry.rounds += 1
            if entry.rounds >= self._limits.rounds_max:
                entry.tell(ConflictRetriesExhausted(lane=self.name))
            else:
                going.append(entry)
        if not going:
            return
        # One pause for all that moved together: drawn apart they would meet each other as rivals.
        rounds = max(entry.rounds for entry in going)
        ceiling = min(self._limits.backoff_s * 2**rounds, self._limits.backoff_max_s)
        pause = ceiling * random.random()  # noqa: S311 - jitter, not a secret

        async def later() -> None:
            await asyncio.sleep(pause)
            for entry in going:
                self._enqueue(entry)

        self._spawn(later())

    def _wait_apart(self, entry: Entry[C], row: Hashable) -> None:
        """Hand the command to the queue of its held row, which has its own connection."""
        apart = self._apart.get(row)
        if apart is None:
            apart = self._apart[row] = _Apart()
            self._spawn(self._run_apart(row, apart))
        apart.entries.append(entry)

    async def _run_apart(self, row: Hashable, apart: _Apart[C]) -> None:
        async with self._apart_slots:
            while apart.entries:
                size = min(len(apart.entries), self._limits.batch_max)
                entries = [apart.entries.popleft() for _ in range(size)]
                entries = [entry for entry in entries if entry.waits]
                if entries:
                    await self._decide(entries, patient=True)
        del self._apart[row]
