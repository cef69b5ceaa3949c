"""The skeleton of deciding a batch: load, replay, decide, save. The same for every aggregate.

rows locked or read, ascending
  → idempotency records read, by the same statement if it can: a duplicate that waited for a row
    sees the first one's record
    → rows that must be as new as the records are read
      → each command decided in order of arrival, by itself
        → rows and records saved, where possible in one statement
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from common.batching.outcomes import Outcome, RowLocked, VersionConflict
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import AlsoRead
from common.db.statements import Connection
from common.db.writes import Write
from common.errors import Refusal
from common.request_key import RequestKey

C = TypeVar("C")
R = TypeVar("R")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Saved:
    """What ``Decider.save`` found and left."""

    rest: Sequence[Write] = ()
    """What is still to be written, in one statement with the records (``common.db.writes``)."""
    conflicts: Mapping[int, RowLocked | VersionConflict] = field(default_factory=dict)
    """By position the commands whose rows were changed or locked by others since they were read.
    Nothing of these is written."""


class Decider(ABC, Generic[C, R, B]):
    """Decides batches of commands ``C`` with results ``R``, on a batch object ``B``.

    The batch object has the loaded rows, as the commands change them. It is built anew for each
    attempt, so nothing of it may be kept.
    """

    def __init__(self, idempotency: IdempotencyStore) -> None:
        self._idempotency = idempotency

    async def __call__(
        self, connection: Connection, commands: Sequence[C], *, wait_for_locks: bool
    ) -> list[Outcome[R]]:
        asked = self._idempotency.asked(key for one in commands for key in self.keys(one))
        batch = await self.load(connection, commands, asked, wait_for_locks=wait_for_locks)
        records = await self._idempotency.load_asked(connection, asked)
        await self.load_after_records(connection, batch, commands)
        outcomes = [self._outcome(batch, records, command) for command in commands]
        saved = await self.save(connection, batch, commands)
        for position, conflict in saved.conflicts.items():
            outcomes[position] = conflict
            records.forget(self.keys(commands[position]))
        await self._idempotency.save(connection, records, saved.rest)
        return outcomes

    def _outcome(self, batch: B, records: IdempotencyRecords, command: C) -> Outcome[R]:
        blocked = self.blocked(batch, command)
        if blocked is not None:
            return blocked
        try:
            return self.decide(batch, records, command)
        except Refusal as refusal:
            return refusal

    @abstractmethod
    async def load(
        self,
        connection: Connection,
        commands: Sequence[C],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> B:
        """Lock or read the rows that the commands concern, in ascending order.

        ``records`` may be read by the last statement that locks rows.
        """

    async def load_after_records(
        self, connection: Connection, batch: B, commands: Sequence[C]
    ) -> None:
        """Read rows that must be at least as new as the idempotency records."""

    @abstractmethod
    def keys(self, command: C) -> Iterable[RequestKey]:
        """The idempotency records that the command reads or writes."""

    def blocked(self, batch: B, command: C) -> Outcome[R] | None:  # noqa: ARG002
        """The outcome if another transaction has locked a row that the command needs, else None."""
        return None

    @abstractmethod
    def decide(
        self, batch: B, records: IdempotencyRecords, command: C
    ) -> R | VersionConflict | RowLocked:
        """Replay or carry out one command on the batch. Pure: no I/O.

        Raises a Refusal, before it has changed anything. VersionConflict: what was read does not
        fit together, since it changed meanwhile. RowLocked: all rows that would do are locked.
        """

    @abstractmethod
    async def save(self, connection: Connection, batch: B, commands: Sequence[C]) -> Saved:
        """Write what the commands changed, or leave it to be written with the records.

        Raises StaleRead if nothing may be written.
        """
