"""Where sagas are written down, and by whose right.

Every write says ``WHERE epoch = mine``; one that meets no row means that another replica has taken
the saga over (``SagaLost``): stop at once, do nothing more. A paused replica that wakes can
therefore write nothing, and since every call is written down before it is made, begin nothing.

The writes of all sagas of a replica go through one lane: one update for many sagas, and one write
for "this step done, the next begun, lease renewed".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.lane import Lane
from common.batching.outcomes import RowLocked
from common.db.engines import Database
from common.locking.locks import NoLocks
from order_service.model.sagas import Saga
from order_service.saga import PLANS
from order_service.store import sagas as rows
from order_service.store.sagas import Renew, Write

_PLANS: Final = [(kind.value, version) for kind, version in PLANS]


class SagaLost(Exception):  # noqa: N818 - a fact: another replica is at work on it
    """Another replica has taken the saga over: whatever this one still wants, it may not."""


class Journal(Protocol):
    """What the runner needs to remember, and to be sure of."""

    async def write(self, saga: Saga, *, lease_s: float) -> None:
        """Write the saga down. Raises SagaLost.

        For ``lease_s`` seconds nobody else touches it; if it ``waits``, it is due after that.
        """

    async def renew(self, saga: Saga, *, lease_s: float) -> None:
        """Still at work on it; with 0 seconds, let it go to whoever comes. Raises SagaLost."""

    async def take_over(self, *, lease_s: float, room: int) -> Sequence[Saga]:
        """Sagas that are due or whose owner's lease ran out, under a new epoch.

        Only of plans that this release knows: the others are left to a replica that knows them.
        """

    async def close(self, saga: Saga) -> None:
        """End the saga and move its order, in one transaction. Raises SagaLost."""


class SagaJournal:
    """The journal in the order database."""

    def __init__(
        self, database: Database, *, owner: str, close: Callable[[Saga], Awaitable[object]]
    ) -> None:
        """``owner``: this replica's name, for people; it is the epoch that counts.

        ``close`` ends a saga, which only the lane of its order can do.
        """
        self._database = database
        self._owner = owner
        self._close = close
        self.lane: Lane[Write | Renew] = Lane("saga", database, self._decide, NoLocks())

    async def close(self, saga: Saga) -> None:
        await self._close(saga)

    async def write(self, saga: Saga, *, lease_s: float) -> None:
        await self.lane.submit(Write.of(saga, lease_s))

    async def renew(self, saga: Saga, *, lease_s: float) -> None:
        await self.lane.submit(Renew(saga.saga_id, saga.epoch, lease_s))

    async def take_over(self, *, lease_s: float, room: int) -> Sequence[Saga]:
        async with self._database.begin() as connection:
            return await rows.take_over(
                connection, owner=self._owner, lease_s=lease_s, room=room, plans=_PLANS
            )

    async def _decide(
        self,
        connection: AsyncConnection,
        commands: Sequence[Write | Renew],
        *,
        wait_for_locks: bool,
    ) -> list[Any]:
        mine = {(command.saga_id, command.epoch) for command in commands}
        ours, held = await rows.lock(connection, mine, wait_for_locks=wait_for_locks)
        # One element a row: of several writes to one saga the last one counts.
        writes: dict[rows.Mine, Write] = {}
        renewals: dict[rows.Mine, Renew] = {}
        for command in commands:
            row = (command.saga_id, command.epoch)
            if row in ours and isinstance(command, Write):
                writes[row] = command
            elif row in ours and isinstance(command, Renew):
                renewals[row] = command
        written = await rows.write(connection, writes.values())
        assert written == set(writes), "locked under this epoch, so nobody else wrote"
        await rows.renew(connection, renewals.values())
        return [self._outcome((command.saga_id, command.epoch), ours, held) for command in commands]

    @staticmethod
    def _outcome(row: rows.Mine, ours: set[rows.Mine], held: set[rows.Mine]) -> Any:
        if row in ours:
            return None
        return RowLocked(row[0]) if row in held else SagaLost()
