"""One batch of a lane carried to its commit, whatever goes wrong on the way.

A failed batch is sorted (``database.classify``) and answered with the least that helps:

- one command broke a constraint → go round once, since somebody else may have been first and
  replay or the model then tells; still broken → halve until the one is found, and translate it;
- contention → the same batch again, bounded, then CONFLICT_RETRIES_EXHAUSTED;
- connection lost → the same batch again, bounded, then DATABASE_UNAVAILABLE. Whether a lost
  COMMIT had happened, the stored answers tell in the next attempt;
- a defect of ours → halve, so that only the command that shows it gets the error.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import structlog
from prometheus_client import Counter, Histogram
from sqlalchemy.ext.asyncio import AsyncEngine

from common.answers import AnswerTaken
from common.database import UNIQUE_VIOLATION, Fault, classify, constraint, sqlstate
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Refusal
from common.metrics import REGISTRY

if TYPE_CHECKING:
    from common.lanes import Decide, Entry

C = TypeVar("C")

CONTENTION_MAX: Final = 5
CONNECTION_MAX: Final = 3
TAKEN_MAX: Final = 3
_PAUSE_S: Final = 0.01

_sizes = Histogram(
    "tally_lane_batch_commands",
    "Commands decided together.",
    ("lane",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)
_faults = Counter(
    "tally_lane_faults",
    "Transactions that failed and were tried again, halved or given up, by what went wrong.",
    ("lane", "fault"),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Attempt(Generic[C]):
    """What it takes to try a batch once."""

    lane: str
    engine: AsyncEngine
    decide: Decide[C]
    translate: Callable[[str, C], Refusal | None]

    async def once(self, entries: Sequence[Entry[C]], *, patient: bool) -> Sequence[Any]:
        """One transaction: decide all, commit once. Anything raised rolls back."""
        async with self.engine.connect() as connection, connection.begin():
            commands = [entry.command for entry in entries]
            outcomes = await self.decide(connection, commands, patient=patient)
            assert len(outcomes) == len(commands), "one outcome per command"
        return outcomes


@dataclass(frozen=True, slots=True)
class Done(Generic[C]):
    """A part of the batch that has come to its end."""

    entries: Sequence[Entry[C]]
    outcomes: Sequence[Any]
    certain: bool = True
    """False when the server was lost and whether it committed is not known."""


async def commit(
    attempt: Attempt[C], entries: Sequence[Entry[C]], *, patient: bool
) -> AsyncIterator[Done[C]]:
    """Carry ``entries`` through, in as few transactions as they allow."""
    _sizes.labels(attempt.lane).observe(len(entries))
    parts = [entries]
    while parts:
        part = parts.pop()
        done = await _carry(attempt, part, patient=patient)
        if done is not None:
            yield done
        else:
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]


async def _carry(
    attempt: Attempt[C], entries: Sequence[Entry[C]], *, patient: bool
) -> Done[C] | None:
    """Try until decided; None means: halve, one of them is to blame."""
    tries: dict[str, int] = {}
    while True:
        try:
            return Done(entries, await attempt.once(entries, patient=patient))
        except Exception as error:  # noqa: BLE001 - every fault of a batch is sorted here
            fault, bound = _sort(error)
            tries[fault] = tries.get(fault, 0) + 1
            _faults.labels(attempt.lane, fault).inc()
            if tries[fault] < bound:
                # Jitter: two batches that deadlocked must not meet again in step.
                await asyncio.sleep(_PAUSE_S * 2 ** tries[fault] * random.random())  # noqa: S311
                continue
            if fault in {"command", "taken", "unexpected"} and len(entries) > 1:
                return None
            return _give_up(attempt, entries, error, fault)


def _sort(error: Exception) -> tuple[str, int]:
    """The fault's name, and how many tries it is worth."""
    if isinstance(error, AnswerTaken):
        return "taken", TAKEN_MAX
    fault = classify(error)
    if fault is Fault.COMMAND and sqlstate(error) == UNIQUE_VIOLATION:
        return "taken", TAKEN_MAX
    bounds = {Fault.CONTENTION: CONTENTION_MAX, Fault.CONNECTION: CONNECTION_MAX}
    return fault.value, bounds.get(fault, 1)


def _give_up(
    attempt: Attempt[C], entries: Sequence[Entry[C]], error: Exception, fault: str
) -> Done[C]:
    if fault == Fault.CONNECTION.value:
        _log.warning("database_unavailable", lane=attempt.lane, error=type(error).__name__)
        return Done(entries, [DatabaseUnavailable() for _ in entries], certain=False)
    if fault == Fault.CONTENTION.value:
        told = [ConflictRetriesExhausted(lane=attempt.lane) for _ in entries]
        return Done(entries, told)
    name = constraint(error)
    outcomes = [attempt.translate(name, entry.command) or error for entry in entries]
    return Done(entries, outcomes)
