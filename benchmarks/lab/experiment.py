"""What an experiment of the lab is: a workload, its tables, its strategies and its audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import asyncpg

from benchmarks.lab.size import Request, Size
from benchmarks.lab.tools import Tools
from common.batching.outcomes import Decide
from common.locking.key_line import Waiting

OK: Final = "succeeded"
REFUSED: Final = "refused"
ERRORED: Final = "errored"

Run: TypeAlias = Callable[[Tools, Request], Awaitable[None]]
"""Carries a request out. Raises Refused, Conflict, or an error of the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOf:
    """The lane of a strategy: what decides its batches, and the keys that it locks in Redis."""

    decide: Callable[[Tools], Decide[object, str]]
    """Its results are refusals in a word, or ''."""
    redis_key: str | None
    """With the attributes of ``Request`` in braces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to carry the requests of an experiment out."""

    run: Run
    right: bool = True
    """Whether it keeps the books. The audit of each cell is compared with it."""
    waiting: Waiting | None = None
    """The strategy of its locks in Redis, if it has any."""
    guards: str = ""
    """Constraints that the tables have under this strategy only, as DDL."""
    lane: LaneOf | None = None
    consume: Run | None = None
    """What the consumer of its queue does with a request."""


@dataclass(slots=True)
class Answers:
    """What the callers were told, all processes together."""

    succeeded: Counter[int] = field(default_factory=Counter)
    """By thing."""
    unknown: Counter[int] = field(default_factory=Counter)
    """Requests without an answer, and those that may have happened all the same."""
    gateway: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Books:
    """What the audit of a cell found."""

    lost: int = 0
    """Changes that were confirmed, and are not in the tables."""
    doubled: int = 0
    """Changes that are in the tables, or were made outside, more than once."""
    oversold: int = 0
    """Things given away beyond the quantity."""

    @property
    def right(self) -> bool:
        return not (self.lost or self.doubled or self.oversold)


Audit: TypeAlias = Callable[[asyncpg.Connection, Size, Answers], Awaitable[Books]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A workload under several strategies."""

    key: str
    title: str
    what: str
    """The workload in a sentence, with the attributes of ``Size`` in braces."""
    full: Size
    quick: Size
    tiny: Size
    """For tests: the smallest in which the damage of a wrong strategy shows."""
    schema: str
    fill: Callable[[asyncpg.Connection, Size], Awaitable[None]]
    warm_up: Sequence[str]
    """Statements that change nothing; each session runs them before the cell begins."""
    plan: Callable[[Size, int], list[Request]]
    """All requests in order, from a seed. They are given to the processes in turn."""
    strategies: Mapping[str, Strategy]
    audit: Audit
    interferer: bool = False


def plan_copies(size: Size, seed: int) -> list[Request]:
    """Each request as often as ``copies`` says, one copy after the other; one user for each."""
    del seed
    return [
        Request(number, thing=number // size.copies % size.things, user=number)
        for number in range(size.requests * size.copies)
    ]
