"""The lane: a queue, one batch in flight, and what follows from each command's outcome."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import structlog

from common import deadlines
from common.batching.batch import Attempt, commit, divide, log_given_up
from common.batching.bulk import BulkCalls
from common.batching.key_waits import KeyWaits
from common.batching.lane_metrics import LaneMetrics
from common.batching.lock_wait_queue import LockWaitQueue
from common.batching.outcomes import (
    Decide,
    Limits,
    QueuedCommand,
    RefuseEarly,
    Reply,
    RowLocked,
    VersionConflict,
)
from common.batching.queues import Queues
from common.db.database import Database
from common.db.errors import Fault
from common.errors import ConflictRetriesExhausted, DeadlineTooShort, Internal, Overloaded, Refusal
from common.locking.locks import Grant, Locks
from common.locking.strategy import Strategies

C = TypeVar("C")
R = TypeVar("R")

_log = structlog.stdlib.get_logger()


class Lane(Generic[C, R]):
    """All writes of one kind of aggregate in this replica: commands ``C``, results ``R``.

    The lane owns its tasks: a caller that goes away loses its reply, never the batch its commit.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        decide: Decide[C, R],
        locks: Locks,
        strategies: Strategies,
        *,
        translate: Callable[[str, C], Refusal | None] = lambda _constraint, _command: None,
        limits: Limits | None = None,
        refuse_early: RefuseEarly[C] | None = None,
    ) -> None:
        """``strategies`` must have every command type: Redis keys and rounds come from there.

        ``translate``: the refusal for a violated constraint, by its name; None if it is a defect.
        ``refuse_early``: what to refuse before any lock, each time before a command is decided.
        """
        self.name = name
        self._strategies = strategies
        self._limits = limits or Limits()
        self._attempt = Attempt(name, database, decide, translate)
        self._locks = locks
        self._refuse_early = refuse_early
        self._queues: Queues[C, R] = Queues(self._limits.batch_max)
        self._bulk_calls: BulkCalls[C, R] = BulkCalls(self._enter_bulk, self._limits)
        self._key_waits: KeyWaits[C, R] = KeyWaits(
            self._resume, self._fail, self._spawn, self._limits
        )
        self._blocked: LockWaitQueue[C, R] = LockWaitQueue(
            self._decide_blocked, self._fail, self._spawn, self._limits, database
        )
        self._depth = 0
        self._metrics: LaneMetrics[C, R] = LaneMetrics(name, lambda: self._depth)
        self._running = False
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, command: C) -> R:
        """Queue the command, wait for its batch, return its result or raise its refusal.

        Raises Overloaded, DeadlineTooShort, ConflictRetriesExhausted or DatabaseUnavailable,
        LookupError for a command without a strategy, or what the decider refuses with.
        """
        strategy = self._strategies[type(command)]
        if self._closed or self._depth >= self._limits.depth_max:
            raise Overloaded(lane=self.name)
        loop = asyncio.get_running_loop()
        left = deadlines.remaining()
        if left is not None and left < self._limits.least_time_s:
            raise DeadlineTooShort
        reply: asyncio.Future[R] = loop.create_future()
        entry: QueuedCommand[C, R] = QueuedCommand(
            command,
            reply,
            self._free_place,
            None if left is None else loop.time() + left - self._limits.least_time_s,
            strategy.keys_of(command),
            strategy.rounds_max,
            new_row=strategy.new_row_of(command),
            weight=strategy.weight_of(command),
        )
        self._depth += 1
        self._metrics.enter(entry)
        self._enqueue(entry)
        return await reply

    async def submit_bulk(self, commands: Sequence[C]) -> list[R | Exception]:
        """The outcome of each command by itself, in their order: its result or its exception.

        Commands that are not decided shortly before the running call's deadline have
        RequestInProgress. Raises Overloaded if the lane is closed.
        """
        return await self._bulk_calls.submit(commands)

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _enter_bulk(self, command: C, reply: Reply[R], on_left: Callable[[], None]) -> None:
        if self._closed:
            raise Overloaded(lane=self.name)
        strategy = self._strategies[type(command)]
        entry: QueuedCommand[C, R] = QueuedCommand(
            command,
            reply,
            on_left,
            None,
            strategy.keys_of(command),
            strategy.rounds_max,
            bulk=True,
            new_row=strategy.new_row_of(command),
            weight=strategy.weight_of(command),
        )
        self._metrics.enter(entry)
        self._enqueue(entry)

    def _enqueue(self, entry: QueuedCommand[C, R]) -> None:
        self._queues.append(entry)
        self._start()

    def _resume(self, entries: list[QueuedCommand[C, R]]) -> None:
        """Let entries whose key was busy be in the next batch."""
        self._queues.set_aside(entries)
        self._start()

    def _start(self) -> None:
        if not self._running:
            self._running = True
            self._spawn(self._run())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        # In a context of its own: the task outlives the call that happened to start it, and must
        # not carry that call's deadline and log fields into other callers' batches.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the end of an entry -----------------------------------------------------------------------

    def _reply(self, entry: QueuedCommand[C, R], outcome: R | Exception) -> None:
        """Let the entry leave the lane, and reply to its caller if it still waits."""
        self._leave(entry)
        if not entry.waits:
            return
        if isinstance(outcome, Exception):
            if isinstance(outcome, ConflictRetriesExhausted):
                self._metrics.exhausted.inc()
            entry.reply.set_exception(outcome)
        else:
            entry.reply.set_result(outcome)

    def _leave(self, entry: QueuedCommand[C, R]) -> None:
        if not entry.left:
            entry.left = True
            self._metrics.leave(entry)
            # An entry counts until here, not until its caller gives up: during an outage the
            # entries of callers long gone would fill the memory.
            entry.on_left()

    def _free_place(self) -> None:
        self._depth -= 1

    def _fail(self, entries: list[QueuedCommand[C, R]], error: BaseException) -> None:
        """Reply with a defect of the lane itself: no caller may wait for ever."""
        _log.error("lane_batch_lost", lane=self.name, error=repr(error)[:200])
        for entry in entries:
            self._reply(entry, error if isinstance(error, Exception) else Internal())

    def _admit(self, entry: QueuedCommand[C, R]) -> bool:
        """Whether the entry's caller still waits and has time; if not, the entry leaves."""
        if not entry.waits:
            self._leave(entry)
            return False
        if entry.deadline is not None and entry.deadline < asyncio.get_running_loop().time():
            self._reply(entry, DeadlineTooShort())
            return False
        return True

    # -- the main queue ----------------------------------------------------------------------------

    async def _run(self) -> None:
        entries: list[QueuedCommand[C, R]] = []
        try:
            while self._queues:
                await self._queues.linger(self._limits)
                entries = self._queues.next_batch(self._admit)
                try:
                    await self._batch(entries)
                except Exception as error:  # noqa: BLE001 - the lane goes on with the next batch
                    self._fail(entries, error)
        except BaseException as error:
            self._fail([*entries, *self._queues.clear()], error)
            raise
        finally:
            self._running = False

    async def _batch(self, entries: list[QueuedCommand[C, R]]) -> None:
        if self._blocked.has_held:
            held, entries = divide(entries, self._blocked.is_held)
            for entry in held:
                # In this batch it would delay all others until the database refuses to wait.
                self._blocked.wait(entry, entry.held_key)
        if self._refuse_early is not None:
            entries = await self._without_refused(entries, self._refuse_early)
            if not entries:
                return
        entries = self._key_waits.join(entries)
        grant = None
        if wanted := {entry.lock_keys for entry in entries if entry.lock_keys}:
            grant = await self._locks.acquire(wanted)
            if grant.busy:
                entries = self._key_waits.without_busy(entries, grant.busy)
                grant = await self._release_unneeded(grant, entries)
        certain = True
        if entries:
            certain = await self._decide(entries)
        if grant is not None and certain:
            # If the commit's outcome is unknown the lock is not freed: its lease expires.
            await self._locks.release(grant)

    async def _without_refused(
        self, entries: list[QueuedCommand[C, R]], refuse_early: RefuseEarly[C]
    ) -> list[QueuedCommand[C, R]]:
        """Reply to the entries that need no lock to be refused; returns the others."""
        refusals = await refuse_early([entry.command for entry in entries])
        for position, refusal in refusals.items():
            self._reply(entries[position], refusal)
        return [entry for at, entry in enumerate(entries) if at not in refusals]

    async def _release_unneeded(
        self, grant: Grant, entries: Sequence[QueuedCommand[C, R]]
    ) -> Grant:
        """Free the keys of entries that wait: a command that waits holds no key.

        It has some only in a cluster, where its keys are in several slots.
        """
        needed = {key for entry in entries for key in entry.lock_keys}
        if unneeded := grant.acquired - needed:
            await self._locks.release(replace(grant, acquired=unneeded))
        return replace(grant, acquired=grant.acquired - unneeded)

    async def _decide(self, entries: list[QueuedCommand[C, R]]) -> bool:
        """Decide and reply; returns whether the outcome of every commit is known."""
        certain = True
        async for done in commit(self._attempt, entries, wait_for_locks=False):
            certain = certain and done.certain
            conflicts = []
            for entry, outcome in zip(done.entries, done.outcomes, strict=True):
                if isinstance(outcome, RowLocked):
                    self._blocked.wait(entry, outcome.row)
                elif isinstance(outcome, VersionConflict):
                    conflicts.append(entry)
                else:
                    self._reply(entry, outcome)
            self._retry(conflicts)
        return certain

    def _retry(self, entries: list[QueuedCommand[C, R]]) -> None:
        """Queue entries with a version conflict again, after a pause that holds no lock."""
        again, exhausted = [], []
        if entries:
            self._metrics.conflicts.inc(len(entries))
        for entry in entries:
            entry.rounds += 1
            if entry.rounds >= entry.rounds_max:
                exhausted.append(entry)
            elif entry.rounds > entry.rounds_max // 2:
                # Versions failed several times: wait for the row's lock instead.
                self._blocked.wait(entry, entry.wait_key)
            else:
                again.append(entry)
        self._give_up(exhausted, Fault.CONTENTION)
        if not again:
            return
        # One pause for all of them: with a pause each, they would conflict with each other.
        pause_s = self._limits.retry.pause_s(max(entry.rounds for entry in again))

        async def requeue() -> None:
            await asyncio.sleep(pause_s)
            for entry in again:
                self._enqueue(entry)

        self._spawn(requeue())

    # -- locked rows -------------------------------------------------------------------------------

    async def _decide_blocked(self, row: Hashable, entries: list[QueuedCommand[C, R]]) -> None:
        """Decide commands that wait for one row, and reply or let them wait once more."""
        entries = [entry for entry in entries if self._admit(entry)]
        if not entries:
            return
        exhausted = []
        async for done in commit(self._attempt, entries, wait_for_locks=True):
            for entry, outcome in zip(done.entries, done.outcomes, strict=True):
                if not isinstance(outcome, RowLocked | VersionConflict):
                    self._reply(entry, outcome)
                    continue
                entry.rounds += 1
                if entry.rounds >= self._limits.blocked_rounds_max:
                    exhausted.append(entry)
                else:
                    self._blocked.wait(entry, row)
        self._give_up(exhausted, Fault.HELD)

    def _give_up(self, entries: Sequence[QueuedCommand[C, R]], fault: Fault) -> None:
        """Refuse entries that have used all their rounds."""
        if not entries:
            return
        log_given_up(self._attempt, entries, fault)
        for entry in entries:
            self._reply(entry, ConflictRetriesExhausted(lane=self.name))
