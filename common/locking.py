"""How operations are kept apart: the words each service's ``locking.py`` table is written in.

Three lines of defence, in this order, and the last alone must keep the books right:

1. a Redis lock lets the crowd of all replicas through in turn; it may be absent, late or wrong;
2. a row strategy in PostgreSQL decides who is first;
3. a constraint refuses what should never have come that far.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


class Rows(enum.Enum):
    """The second line: how a transaction meets the rows it changes."""

    FOR_UPDATE = "row locks, taken in ascending id order"
    VERSION = "row version compared at the write"
    CONDITIONAL_UPDATE = "UPDATE … WHERE state = expected"
    INSERT = "nothing to lock: a new row under a unique key"


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one operation is kept from meeting itself."""

    redis_key: str | None
    """Template of the first line's key, or None where the crowd needs no ordering."""
    rows: Rows
    rounds_max: int
    """How often the operation is decided again when others were faster, before it is refused."""
    guards: tuple[str, ...]
    """The constraints that hold when the other lines are gone."""
    why: str


class Locks(Protocol):
    """The first line of defence, for one batch at a time."""

    async def acquire(self, keys: Collection[str]) -> Grant:
        """Try to take all ``keys`` in one round trip. Never raises, never waits for an owner."""

    async def release(self, grant: Grant) -> None:
        """Give back what the grant holds. Never raises; what cannot be freed lapses by itself."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What an ``acquire`` came back with."""

    token: str
    held: frozenset[str]
    """Keys that are ours now."""
    busy: frozenset[str]
    """Keys that somebody else holds. A key in neither set is not guarded: Redis is away."""


class NoLocks:
    """The first line taken away: Redis is not configured. The other two hold alone."""

    async def acquire(self, keys: Collection[str]) -> Grant:  # noqa: ARG002
        return Grant("", frozenset(), frozenset())

    async def release(self, grant: Grant) -> None:
        pass
