"""One batch of a lane carried to its commit, whatever goes wrong on the way.

A failed batch is sorted (``database.classify``) and answered with the least that helps:

- one command broke a constraint → go round, since somebody else may have been first and replay or
  the model then tells; still broken → halve until the one is found, and translate it;
- somebody holds what an impatient batch wants to insert → halve until the one is found; that one
  waits apart;
- contention → the same batch again, bounded, then CONFLICT_RETRIES_EXHAUSTED;
- connection lost → the same batch again, bounded, then DATABASE_UNAVAILABLE. Whether a lost
  COMMIT had happened, the stored answers tell in the next attempt;
- a defect of ours → halve, so that only the command that shows it gets the error.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import structlog
from prometheus_client import Counter, Histogram

from common.answers import AnswerTaken
from common.database import (
    LOCK_NOT_AVAILABLE,
    UNIQUE_VIOLATION,
    Database,
    Fault,
    classify,
    constraint,
    sqlstate,
)
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Refusal
from common.lanes.entries import Decide, Entry, Held
from common.metrics import REGISTRY

C = TypeVar("C")

TRIES_MAX: Final = {"contention": 5, "connection": 3, "taken": 3}
"""Tries of one batch per kind of fault; other kinds get one."""
UNREACHABLE_S: Final = 4.0
"""How long a batch goes on trying to reach the database: less than most callers wait."""
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
    database: Database
    decide: Decide[C]
    translate: Callable[[str, C], Refusal | None]

    async def once(self, entries: Sequence[Entry[C]], *, patient: bool) -> Sequence[Any]:
        """One transaction: decide all, commit once. Anything raised rolls back."""
        engine = self.database.patient if patient else self.database.lanes
        async with engine.connect() as connection, connection.begin():
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
        done = await _carry(attempt, part, patient=patient, whole=part is entries)
        if done is not None:
            yield done
        else:
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]


async def _carry(
    attempt: Attempt[C], entries: Sequence[Entry[C]], *, patient: bool, whole: bool
) -> Done[C] | None:
    """Try until decided; None means: halve, one of them is to blame."""
    tries: dict[str, int] = {}
    begun = time.monotonic()
    while True:
        try:
            outcomes = await attempt.once(entries, patient=patient)
            return Done(entries, outcomes)
        except Exception as error:  # noqa: BLE001 - every fault of a batch is sorted here
            fault = _sort(error)
            tries[fault] = tries.get(fault, 0) + 1
            _faults.labels(attempt.lane, fault).inc()
            if _worth_another_try(fault, tries, error, begun=begun, whole=whole):
                # Jitter: two batches that deadlocked must not meet again in step.
                await asyncio.sleep(_PAUSE_S * 2 ** tries[fault] * random.random())  # noqa: S311
                continue
            # A patient batch is about one held row: halving it would find nothing.
            divisible = fault in {"command", "taken", "unexpected"} or (
                fault == "held" and not patient
            )
            if divisible and len(entries) > 1:
                return None
            return _give_up(attempt, entries, error, fault, lost="connection" in tries)


def _sort(error: Exception) -> str:
    """The name of the fault."""
    if isinstance(error, AnswerTaken):
        return "taken"
    state = sqlstate(error)
    if state == LOCK_NOT_AVAILABLE:
        return "held"
    fault = classify(error)
    if fault is Fault.COMMAND and state == UNIQUE_VIOLATION:
        return "taken"
    return fault.value


def _worth_another_try(
    fault: str, tries: dict[str, int], error: Exception, *, begun: float, whole: bool
) -> bool:
    if fault == "connection":
        # A server that did not answer in a statement's whole time would only be waited for again.
        silent = isinstance(error, TimeoutError)
        return (
            not silent
            and tries[fault] < TRIES_MAX[fault]
            and time.monotonic() - begun < UNREACHABLE_S
        )
    if fault == "taken" and not whole:
        return False  # the whole batch went round already; now the one to blame is looked for
    return tries[fault] < TRIES_MAX.get(fault, 1)


def _give_up(
    attempt: Attempt[C], entries: Sequence[Entry[C]], error: Exception, fault: str, *, lost: bool
) -> Done[C]:
    if lost:
        _log.warning("database_unavailable", lane=attempt.lane, error=type(error).__name__)
        return Done(entries, [DatabaseUnavailable() for _ in entries], certain=False)
    if fault == "held":
        return Done(entries, [Held(entry.lock_key or id(entry)) for entry in entries])
    if fault == "contention" or isinstance(error, AnswerTaken):
        return Done(entries, [ConflictRetriesExhausted(lane=attempt.lane) for _ in entries])
    name = constraint(error)
    outcomes = [attempt.translate(name, entry.command) or error for entry in entries]
    return Done(entries, outcomes)
