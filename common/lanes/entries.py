"""What goes through a lane, what may come of it, and the lane's bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Held:
    """Another transaction holds ``row``; decide this command apart, waiting for it."""

    row: Hashable


@dataclass(frozen=True, slots=True)
class Moved:
    """The row's version changed between reading and writing; decide this command again."""


class Decide(Protocol[C_contra]):
    """The inner steps for a batch. Never commits; the same batch may be given to it again."""

    async def __call__(
        self, connection: AsyncConnection, commands: Sequence[C_contra], *, patient: bool
    ) -> Sequence[Any]:
        """One outcome per command, in their order.

        ``patient``: lock all rows and wait for those that others hold (bounded by lock_timeout)
        instead of answering ``Held``.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """A lane's bounds. Times are the lane's own: one impatient caller never shortens a batch."""

    batch_max: int = 256
    depth_max: int = 4_096
    """Commands waiting or in flight, beyond which callers are told OVERLOADED."""
    least_time_s: float = 0.02
    """Callers with less time than this are refused before anything is begun for them."""
    crowd: int = 8
    """Commands waiting at once from which on a lane lets more of them join before it begins."""
    join_s: float = 0.001
    joins_max: int = 10
    lock_patience_s: float = 0.05
    """How long a command stays behind for a busy Redis lock before it goes on without it."""
    lock_pause_s: float = 0.003
    rounds_max: int = 10
    """How often a command whose row moved is decided again; the later half waits for the row."""
    backoff_s: float = 0.005
    backoff_max_s: float = 0.1
    apart_max: int = 4
    """Transactions at once for rows that others hold, beside the lane's own."""
    apart_rounds_max: int = 5
    """Rounds beyond ``rounds_max`` for a held row, each a wait of the session's lock_timeout."""


@dataclass(slots=True, eq=False)
class Entry(Generic[C]):
    """A command and who waits for it."""

    command: C
    answer: asyncio.Future[Any]
    deadline: float | None
    lock_key: str | None
    behind_since: float | None = None
    rounds: int = 0
    left: bool = False
    """Whether it has left the lane: told, or dropped because its caller had gone."""

    @property
    def waits(self) -> bool:
        return not self.answer.done()
