"""The lane itself: a queue, one batch in flight, and what becomes of each command."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import structlog

from common import deadlines
from common.database import Database
from common.errors import ConflictRetriesExhausted, DeadlineTooShort, Internal, Overloaded, Refusal
from common.lanes.apart import Apart
from common.lanes.batches import Attempt, commit
from common.lanes.entries import Decide, Entry, Held, Limits, Moved
from common.locking import Locks

C = TypeVar("C")

_log = structlog.stdlib.get_logger()


def _no_key(_: Any) -> str | None:
    return None


class Lane(Generic[C]):
    """The one way through which all writes of one kind of aggregate go in this replica."""

    def __init__(
        self,
        name: str,
        database: Database,
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
        self._attempt = Attempt(name, database, decide, translate)
        self._locks = locks
        self._lock_key = lock_key
        self._queue: deque[Entry[C]] = deque()
        self._behind: deque[Entry[C]] = deque()
        """Commands whose Redis key somebody else holds."""
        self._apart: Apart[C] = Apart(self._decide_apart, self._lost, self._spawn, self._limits)
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
        return await entry.answer

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

    # -- what becomes of an entry ------------------------------------------------------------------

    def _tell(self, entry: Entry[C], outcome: Any) -> None:
        """The entry's end: it leaves the lane, and its caller, if still there, hears why."""
        if not entry.left:
            entry.left = True
            # Counted until here and not until its caller gives up: during an outage the entries of
            # callers long gone would fill the memory.
            self._depth -= 1
        if entry.answer.done():
            return
        if isinstance(outcome, BaseException):
            entry.answer.set_exception(outcome)
        else:
            entry.answer.set_result(outcome)

    def _lost(self, entries: list[Entry[C]], error: BaseException) -> None:
        """A defect in the lane itself: nobody may be left waiting for ever."""
        _log.error("lane_batch_lost", lane=self.name, error=repr(error)[:200])
        for entry in entries:
            self._tell(entry, error if isinstance(error, Exception) else Internal())

    def admit(self, entry: Entry[C]) -> bool:
        """Whether somebody still waits for the entry and has time; if not, it leaves."""
        if not entry.waits:
            self._tell(entry, None)
            return False
        if entry.deadline is not None and entry.deadline < asyncio.get_running_loop().time():
            self._tell(entry, DeadlineTooShort())
            return False
        return True

    # -- the main queue ----------------------------------------------------------------------------

    async def _run(self) -> None:
        entries: list[Entry[C]] = []
        try:
            while self._queue or self._behind:
                await self._let_join()
                entries = self._gather()
                try:
                    await self._batch(entries)
                except Exception as error:  # noqa: BLE001
                    self._lost(entries, error)
        except BaseException as error:
            self._lost([*entries, *self._queue, *self._behind], error)
            self._queue.clear()
            self._behind.clear()
            raise
        finally:
            self._running = False

    async def _let_join(self) -> None:
        """Let calls that have already arrived at this process reach a busy lane's queue.

        On their way they take turns with the batches for the interpreter. A batch costs about the
        same whether it holds ten commands or a hundred, so a crowd waits a millisecond at a time
        while it still grows. A queue without a crowd never waits.
        """
        for _ in range(self._limits.joins_max):
            before = len(self._queue)
            if not self._limits.crowd <= before < self._limits.batch_max:
                return
            await asyncio.sleep(self._limits.join_s)
            if len(self._queue) - before < 1:
                return

    def _gather(self) -> list[Entry[C]]:
        """The next batch: all that waits, up to its limit, less those who have gone.

        Commands that were left behind come first, but take no more than half of the places: a
        crowd on one busy key must not keep everybody else out.
        """
        batch: list[Entry[C]] = []
        for queue, size_max in (
            (self._behind, self._limits.batch_max // 2),
            (self._queue, self._limits.batch_max),
            (self._behind, self._limits.batch_max),
        ):
            while queue and len(batch) < size_max:
                entry = queue.popleft()
                if self.admit(entry):
                    batch.append(entry)
        return batch

    async def _batch(self, entries: list[Entry[C]]) -> None:
        grant = None
        if keys := {entry.lock_key for entry in entries if entry.lock_key}:
            grant = await self._locks.acquire(keys)
            entries = self._leave_behind(entries, grant.busy)
        certain = True
        if entries:
            certain = await self._decide(entries)
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
        self._behind.extendleft(reversed(staying))
        return going

    async def _decide(self, entries: list[Entry[C]]) -> bool:
        """Decide and answer; returns whether the outcome of every commit is known."""
        certain = True
        async for done in commit(self._attempt, entries, patient=False):
            certain = certain and done.certain
            again = []
            for entry, outcome in zip(done.entries, done.outcomes, strict=True):
                if isinstance(outcome, Held):
                    self._apart.wait(entry, outcome.row)
                elif isinstance(outcome, Moved):
                    again.append(entry)
                else:
                    self._tell(entry, outcome)
            self._go_round(again)
        return certain

    def _go_round(self, entries: list[Entry[C]]) -> None:
        """Decide again those whose row moved, after a pause that holds nothing."""
        going = []
        for entry in entries:
            entry.rounds += 1
            if entry.rounds >= self._limits.rounds_max:
                self._tell(entry, ConflictRetriesExhausted(lane=self.name))
            elif entry.rounds > self._limits.rounds_max // 2:
                # Out of luck with versions: wait in line for the row instead.
                self._apart.wait(entry, entry.lock_key or id(entry))
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

    # -- held rows ---------------------------------------------------------------------------------

    async def _decide_apart(self, row: Hashable, entries: list[Entry[C]]) -> None:
        """Decide commands that wait for one row, and answer or let them wait once more."""
        entries = [entry for entry in entries if self.admit(entry)]
        if not entries:
            return
        async for done in commit(self._attempt, entries, patient=True):
            for entry, outcome in zip(done.entries, done.outcomes, strict=True):
                if isinstance(outcome, Held | Moved):
                    entry.rounds += 1
                    if entry.rounds >= self._limits.rounds_max + self._limits.apart_rounds_max:
                        self._tell(entry, ConflictRetriesExhausted(lane=self.name))
                    else:
                        self._apart.wait(entry, row)
                else:
                    self._tell(entry, outcome)
