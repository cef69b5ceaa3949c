"""The first line of defence as a lane uses it: locks on keys, for one batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Keys: TypeAlias = tuple[str, ...]
"""The keys of one command, which takes all of them or none."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class BusyKey:
    """A key that another owner holds."""

    key: str
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its owner frees it, as far as that is noticed: a wait for it needs a limit."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The result of an ``acquire``."""

    token: str
    acquired: frozenset[str]
    """Keys that this grant owns. One that is not here, of a command that is not busy, is not
    guarded: Redis is unavailable."""
    busy: Mapping[Keys, BusyKey] = field(default_factory=dict)
    """Of each command that cannot have its keys now: one that another owner holds."""


class Locks(Protocol):
    """Locks with a lease: the keys of a dead owner expire."""

    async def acquire(self, wanted: Collection[Keys]) -> Grant:
        """Try to take the keys of commands in one round trip, of each command all or none.

        Never raises, never waits for an owner.
        """

    async def release(self, grant: Grant) -> None:
        """Free what the grant owns. Never raises; what cannot be freed expires with its lease."""


class NoLocks:
    """No first line: Redis is not configured. The other two lines hold alone."""

    async def acquire(self, wanted: Collection[Keys]) -> Grant:  # noqa: ARG002
        return Grant("", frozenset())

    async def release(self, grant: Grant) -> None:
        pass
