"""Carries one batch of a lane to its commit, through every fault of the database.

A failed transaction is classified (``common.db.errors``); then the batch is

- run again, if a unique key was violated: another transaction may have been first, and the next
  attempt reads its record. Still violated: halved until the one command is found, and the
  constraint translated to a refusal;
- halved, if another transaction holds an uncommitted row that the batch inserts too, until the one
  command is found; it then waits for the lock, with all others of its Redis key;
- run again a few times after a deadlock or a lock timeout, then CONFLICT_RETRIES_EXHAUSTED;
- run again a few times when the connection was lost, then DATABASE_UNAVAILABLE. If a lost COMMIT
  had succeeded, the next attempt finds the idempotency records;
- given up with DATABASE_UNAVAILABLE when its COMMIT does not return in time: it goes on by itself,
  and holds its row locks, so that no other attempt gets by it (``common.db.transactions``);
- divided, if a statement reaches statement_timeout, for a while (SLOW_S): what is fast enough in a
  smaller batch is written, the rest is refused with DATABASE_UNAVAILABLE;
- refused with OVERLOADED, if no connection of the lanes became free;
- halved, if Tally has a defect, so that only the command that triggers it gets the error.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import Counter, Histogram

from common import failpoints
from common.backoff import Backoff
from common.batching.lane_metrics import LOCK_HOLD
from common.batching.outcomes import Decide, HeldKey, Outcome, QueuedCommand, RowLocked
from common.db.database import Database
from common.db.errors import Fault, RecordConflict, classify, constraint_name, count_error
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Overloaded, Refusal
from common.metrics import REGISTRY, from_zero

C = TypeVar("C")
R = TypeVar("R")

TRIES_MAX: Final = {Fault.CONTENTION: 5, Fault.CONNECTION: 3, Fault.TAKEN: 3}
"""Tries of one batch by kind of fault; other kinds get one."""
UNREACHABLE_S: Final = 4.0
"""How long a batch tries to reach the database: less than most callers wait."""
SLOW_S: Final = 12.0
"""How long a batch whose statements are too slow is divided: time for about four statements that
reach their limit. Every other caller of the lane waits meanwhile."""
SLOW_PARTS: Final = 8
"""Into how many parts: each try costs a statement's whole limit, and three divisions reach the one
command of 256."""
_RETRY: Final = Backoff(0.02, 1.0, jitter=(0.0, 1.0))
_GIVEN_UP: Final = frozenset(
    {Fault.HELD, Fault.CONTENTION, Fault.CONNECTION, Fault.SLOW, Fault.OVERLOAD}
)
"""Faults of the database or of this replica, not of a command."""

_sizes = Histogram(
    "tally_lane_batch_commands",
    "Commands decided together.",
    ("lane",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)
_faults = Counter(
    "tally_lane_faults",
    "Transactions that failed and were run again, halved or given up, by kind of fault.",
    ("lane", "fault"),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Attempt(Generic[C, R]):
    """What one attempt at a batch needs."""

    lane: str
    database: Database
    decide: Decide[C, R]
    translate: Callable[[str, C], Refusal | None]

    def __post_init__(self) -> None:
        from_zero(_sizes, [self.lane])
        from_zero(LOCK_HOLD, [self.lane])
        from_zero(_faults, [self.lane], [fault.value for fault in Fault])

    async def run(
        self, entries: Sequence[QueuedCommand[C, R]], *, wait_for_locks: bool
    ) -> Sequence[Outcome[R]]:
        """One transaction: decide all commands, commit once. Any exception rolls back."""
        pool = self.database.waiting if wait_for_locks else self.database.lanes
        begun_s: float | None = None
        try:
            async with self.database.transactions.begin(pool) as connection:
                begun_s = time.monotonic()
                commands = [entry.command for entry in entries]
                outcomes = await self.decide(connection, commands, wait_for_locks=wait_for_locks)
                assert len(outcomes) == len(commands), "one outcome per command"
                if failpoints.enabled:
                    self._hit(entries, "before")
        finally:
            if begun_s is not None:
                LOCK_HOLD.labels(self.lane).observe(time.monotonic() - begun_s)
        if failpoints.enabled:
            self._hit(entries, "after")
        return outcomes

    def _hit(self, entries: Sequence[QueuedCommand[C, R]], when: str) -> None:
        for name in sorted({type(entry.command).__name__ for entry in entries}):
            failpoints.hit(f"lane.{self.lane}.{name}.{when}")


@dataclass(frozen=True, slots=True)
class Done(Generic[C, R]):
    """A part of the batch that needs no further attempt."""

    entries: Sequence[QueuedCommand[C, R]]
    outcomes: Sequence[Outcome[R] | Exception]
    """An exception that is no refusal is a defect of Tally."""
    certain: bool = True
    """False if the server was lost and it is unknown whether it committed."""


async def commit(
    attempt: Attempt[C, R], entries: Sequence[QueuedCommand[C, R]], *, wait_for_locks: bool
) -> AsyncIterator[Done[C, R]]:
    """Carry ``entries`` through in as few transactions as possible."""
    _sizes.labels(attempt.lane).observe(len(entries))
    parts = [entries]
    slow = _Slow()
    held: set[HeldKey] = set()
    while parts:
        part = parts.pop()
        if held:
            # Each of them would cost its part the whole lock_timeout again.
            waiting, part = divide(part, held.__contains__)
            if waiting:
                yield Done(waiting, [_locked(entry) for entry in waiting])
            if not part:
                continue
        if slow.over:
            log_given_up(attempt, part, Fault.SLOW)
            yield Done(part, [DatabaseUnavailable() for _ in part])
            continue
        done = await _carry(
            attempt, part, wait_for_locks=wait_for_locks, whole=part is entries, slow=slow
        )
        if done is not None:
            held.update(_held_keys(done))
            yield done
        else:
            size = math.ceil(len(part) / (SLOW_PARTS if slow.last else 2))
            parts += reversed([part[at : at + size] for at in range(0, len(part), size)])


def divide(
    entries: Sequence[QueuedCommand[C, R]], is_held: Callable[[HeldKey], bool]
) -> tuple[list[QueuedCommand[C, R]], list[QueuedCommand[C, R]]]:
    """The entries whose keys are held, and the others."""
    held: list[QueuedCommand[C, R]] = []
    others: list[QueuedCommand[C, R]] = []
    for entry in entries:
        key = entry.held_key
        (held if key is not None and is_held(key) else others).append(entry)
    return held, others


def _held_keys(done: Done[C, R]) -> list[HeldKey]:
    locked = [outcome.row for outcome in done.outcomes if isinstance(outcome, RowLocked)]
    return [row for row in locked if isinstance(row, HeldKey)]


def _locked(entry: QueuedCommand[C, R]) -> RowLocked:
    """The outcome of a command that found a row held, which the database does not name."""
    return RowLocked(entry.held_key or id(entry))


@dataclass(slots=True)
class _Slow:
    """Whether statements of the batch reached their time limit, and until when it is divided."""

    until_s: float = field(default_factory=lambda: time.monotonic() + SLOW_S)
    last: bool = False
    """Whether that was the last fault."""
    found: bool = False

    @property
    def over(self) -> bool:
        return self.found and time.monotonic() >= self.until_s


async def _carry(
    attempt: Attempt[C, R],
    entries: Sequence[QueuedCommand[C, R]],
    *,
    wait_for_locks: bool,
    whole: bool,
    slow: _Slow,
) -> Done[C, R] | None:
    """Try until decided. None: divide the batch, since one of its commands causes the fault."""
    tries: dict[Fault, int] = {}
    begun = time.monotonic()
    while True:
        try:
            return Done(entries, await attempt.run(entries, wait_for_locks=wait_for_locks))
        except Exception as error:  # noqa: BLE001 - every fault of a batch is handled here
            fault = classify(error)
            count_error(error)
            slow.last = fault is Fault.SLOW
            slow.found = slow.found or slow.last
            tries[fault] = tries.get(fault, 0) + 1
            _faults.labels(attempt.lane, fault.value).inc()
            look_for_it = not whole and len(entries) > 1
            if _worth_another_try(fault, tries, error, begun=begun, look_for_it=look_for_it):
                # Jitter: two batches that deadlocked must not retry in step.
                await asyncio.sleep(_RETRY.pause_s(tries[fault]))
                continue
            # A batch that waits for locks is about one row: halving it would find nothing.
            divisible = (
                fault in {Fault.COMMAND, Fault.TAKEN, Fault.UNEXPECTED}
                or (fault is Fault.HELD and not wait_for_locks)
                or (fault is Fault.SLOW and not slow.over)
            )
            if divisible and len(entries) > 1:
                return None
            return _give_up(attempt, entries, error, fault, lost=Fault.CONNECTION in tries)


def _worth_another_try(
    fault: Fault, tries: dict[Fault, int], error: Exception, *, begun: float, look_for_it: bool
) -> bool:
    """``look_for_it``: the batch is being halved until the one command is found that causes it."""
    if fault is Fault.CONNECTION:
        # A server that was silent for a statement's whole time limit would be silent again.
        silent = isinstance(error, TimeoutError)
        return (
            not silent
            and tries[fault] < TRIES_MAX[fault]
            and time.monotonic() - begun < UNREACHABLE_S
        )
    if fault is Fault.TAKEN and look_for_it:
        return False
    return tries[fault] < TRIES_MAX.get(fault, 1)


def _give_up(
    attempt: Attempt[C, R],
    entries: Sequence[QueuedCommand[C, R]],
    error: Exception,
    fault: Fault,
    *,
    lost: bool,
) -> Done[C, R]:
    held = fault is Fault.HELD and not lost and not attempt.database.transactions.pending
    if held:
        return Done(entries, [_locked(entry) for entry in entries])
    if lost or fault in _GIVEN_UP:
        log_given_up(attempt, entries, fault, error=type(error).__name__)
    # A row that is held while a COMMIT has not returned is held by that transaction, most likely.
    if lost or fault is Fault.HELD:
        return Done(entries, [DatabaseUnavailable() for _ in entries], certain=False)
    if fault is Fault.SLOW:
        # Nothing was written, and no time is left to divide them further.
        return Done(entries, [DatabaseUnavailable() for _ in entries])
    if fault is Fault.OVERLOAD:
        return Done(entries, [Overloaded(lane=attempt.lane) for _ in entries])
    if fault is Fault.CONTENTION or isinstance(error, RecordConflict):
        return Done(entries, [ConflictRetriesExhausted(lane=attempt.lane) for _ in entries])
    name = constraint_name(error)
    return Done(entries, [attempt.translate(name, entry.command) or error for entry in entries])


def log_given_up(
    attempt: Attempt[C, R], entries: Sequence[QueuedCommand[C, R]], fault: Fault, *, error: str = ""
) -> None:
    _log.warning(
        "batch_given_up",
        lane=attempt.lane,
        fault=fault.value,
        commands=len(entries),
        error=error,
    )
