"""What a lane's batch makes of a command, and the limits of a lane."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from common.backoff import Backoff
from common.db.statements import Connection
from common.errors import Refusal

C = TypeVar("C")
R = TypeVar("R")
C_contra = TypeVar("C_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class RowLocked:
    """Another transaction holds the lock on ``row``: decide this command when the row is free."""

    row: Hashable


@dataclass(frozen=True, slots=True)
class HeldKey:
    """The row of a ``RowLocked`` that the database does not name: another transaction has inserted
    it and not committed. The commands with this name insert the same row."""

    name: str
    """The row's (``Strategy.new_row``), or else the commands' first Redis key."""


@dataclass(frozen=True, slots=True)
class VersionConflict:
    """The row changed between reading and writing: decide this command again."""


Outcome: TypeAlias = R | Refusal | RowLocked | VersionConflict
"""The caller's result, its refusal, or why the command has to be decided again."""


class Decide(Protocol[C_contra, R_co]):
    """Decides a batch in an open transaction. Never commits; may be called again for the batch."""

    async def __call__(
        self, connection: Connection, commands: Sequence[C_contra], *, wait_for_locks: bool
    ) -> Sequence[Outcome[R_co]]:
        """One outcome per command, in their order.

        ``wait_for_locks``: lock all rows and wait for other transactions, up to lock_timeout,
        instead of returning ``RowLocked``.
        """


class RefuseEarly(Protocol[C_contra]):
    """Finds commands that need no lock to be refused, such as orders for what is sold."""

    async def __call__(self, commands: Sequence[C_contra], /) -> Mapping[int, Refusal]:
        """The refusals, by the commands' positions. Never raises; what it misses is decided."""


_RETRY: Final = Backoff(0.01, 0.1, jitter=(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Limits:
    """A lane's limits. Times are the lane's own: no caller's deadline shortens a batch."""

    batch_max: int = 256
    depth_max: int = 4_096
    """Single calls' commands waiting or in flight; beyond them, callers are refused with
    OVERLOADED."""
    bulk_depth_max: int = 2_048
    """Bulk calls' commands waiting or in flight; beyond them, items wait for their turn."""
    chunk_max: int = 128
    """Commands of a bulk call that take their places and enter the lane together."""
    least_time_s: float = 0.02
    """Callers with less time left are refused before anything begins."""
    linger_from: int = 8
    """Queue length from which the lane lingers for more commands before a batch."""
    linger_s: float = 0.001
    linger_gain: int = 4
    """How many commands must have come meanwhile for the lane to linger once more."""
    linger_max: int = 10
    """How many times in a row a lane lingers at most."""
    busy_key_s: float = 0.05
    """How long a command waits for a busy Redis lock before it goes on without it."""
    retry: Backoff = _RETRY
    """Pauses of commands that are decided again after a version conflict."""
    blocked_max: int = 4
    """Transactions of the lane at once that wait for a row for the first time."""
    blocked_rounds_max: int = 75
    """How often a command waits for a locked row, each time for lock_timeout, before it is
    refused."""


class Reply(Protocol[R_contra]):
    """Where a command's outcome goes: the future of a single call, or a place in a bulk call's."""

    def done(self) -> bool: ...

    def set_result(self, result: R_contra, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


@dataclass(slots=True, eq=False)
class QueuedCommand(Generic[C, R]):
    """A command in a lane, and the reply that its caller waits for."""

    command: C
    reply: Reply[R]
    on_left: Callable[[], None]
    """Called once, when it leaves the lane."""
    deadline: float | None
    lock_keys: tuple[str, ...]
    rounds_max: int
    bulk: bool = False
    """Whether it is one of a bulk call's."""
    new_row: str | None = None
    """The name of the row that it inserts (``Strategy.new_row``)."""
    weight: int = 1
    """What it adds to the weight of its batch (``Strategy.weight_of``)."""
    locked_since: float | None = None
    """When it first found its Redis lock busy or its row locked, by the event loop's time."""
    rounds: int = 0
    """How often it was decided without a result."""
    left: bool = False
    """Whether it has left the lane, with a reply or because its caller is gone."""

    @property
    def wait_key(self) -> Hashable:
        """The queue in which it waits after version conflicts: that of the first of its keys."""
        return self.lock_keys[0] if self.lock_keys else id(self)

    @property
    def held_key(self) -> HeldKey | None:
        """The row that it waits for when the database does not name it."""
        if self.new_row is not None:
            return HeldKey(self.new_row)
        return HeldKey(self.lock_keys[0]) if self.lock_keys else None

    @property
    def waits(self) -> bool:
        """Whether its caller still waits."""
        return not self.reply.done()
