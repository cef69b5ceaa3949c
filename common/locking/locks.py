"""The first line of defence as a lane uses it: locks on keys, for one batch at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Grant:
    """The result of an ``acquire``."""

    token: str
    acquired: frozenset[str]
    """Keys that this grant owns."""
    busy: frozenset[str]
    """Keys that another owner holds. A key in neither set is not guarded: Redis is unavailable."""


class Locks(Protocol):
    """Locks with a lease: the keys of a dead owner expire."""

    async def acquire(self, keys: Collection[str]) -> Grant:
        """Try to take all ``keys`` in one round trip. Never raises, never waits for an owner."""

    async def release(self, grant: Grant) -> None:
        """Free what the grant owns. Never raises; what cannot be freed expires with its lease."""


class NoLocks:
    """No first line: Redis is not configured. The other two lines hold alone."""

    async def acquire(self, keys: Collection[str]) -> Grant:  # noqa: ARG002
        return Grant("", frozenset(), frozenset())

    async def release(self, grant: Grant) -> None:
        pass
