"""The journal: the durable record of every saga, and the fence around it.

Every write says ``WHERE epoch = <the owner's>``. A write that matches no row means that another
replica has taken the saga over (``SagaLost``): stop at once and write nothing more. So a replica
that was paused can write nothing, and, since every call is journalled before it is made, begin
nothing.

The writes of all sagas of a replica go through one lane: one update for many sagas, and one write
for "this step done, the next begun, lease renewed".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from common.batching.lane import Lane
from common.batching.outcomes import Outcome, RowLocked
from common.db.database import Database
from common.db.repeat import in_transaction, read
from common.db.statements import Connection
from common.locking.locks import NoLocks
from order_service.clients import GATEWAY
from order_service.errors import SagaLost
from order_service.locking import STRATEGIES
from order_service.model.order import Order
from order_service.model.saga import Saga
from order_service.model.saga_command import RenewLease, TakeOverSagas, WriteSaga
from order_service.saga.plan import PAYMENT, PLANS
from order_service.store import journal as store
from order_service.store import saga_waiting
from order_service.store.journal import TakenOver
from order_service.store.saga_waiting import WaitingSagas

_PLANS: Final = [(kind.value, version) for kind, version in PLANS]

JournalCommand = WriteSaga | RenewLease


class SagaJournal:
    """The journal in the order database."""

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        close: Callable[[Saga], Awaitable[Order]],
        note: Callable[[Saga, str], Awaitable[Order]],
    ) -> None:
        """``owner``: this replica's name, for people; the epoch is what counts.

        ``close`` and ``note`` change the order. Only the order lane can do that (see wiring).
        """
        self._database = database
        self._owner = owner
        self.close = close
        """Ends a saga and moves its order, in one transaction; the order. Raises SagaLost."""
        self.note = note
        """Shows on the order why its saga cannot end. Raises SagaLost."""
        self.lane: Lane[JournalCommand, None] = Lane(
            "saga", database, self._decide, NoLocks(), STRATEGIES
        )

    async def write(self, saga: Saga, *, lease_s: float) -> None:
        """Write the saga. Raises SagaLost.

        No other replica touches it for ``lease_s`` seconds; if it ``waits``, it is due after them.
        """
        saga.snapshot += 1
        # A copy: the saga may change before a batch writes it, if its task is cancelled.
        await self.lane.submit(WriteSaga(saga.copy(), lease_s))

    async def renew(self, saga: Saga, *, lease_s: float) -> None:
        """Extend the lease, or with 0 seconds give the saga up to any replica. Raises SagaLost."""
        await self.lane.submit(RenewLease(saga.saga_id, saga.epoch, lease_s))

    async def take_over(
        self,
        *,
        lease_s: float,
        uses_gateway: bool,
        capacity: int,
        retries: int,
        away: Collection[str],
    ) -> TakenOver:
        """Take sagas of one bulkhead over under a new epoch (``TakeOverSagas``).

        Only sagas of plans that this release knows; the others are left to a newer replica.
        """
        command = TakeOverSagas(self._owner, lease_s, uses_gateway, capacity, retries, away, _PLANS)
        return await in_transaction(
            self._database,
            "saga_takeover",
            lambda connection: store.take_over(connection, command),
        )

    async def read_waiting(self, *, after: str, size: int) -> WaitingSagas:
        """Sagas that wait for a payment, ``size`` at most, with ids above ``after``."""
        return await read(
            self._database,
            lambda connection: saga_waiting.read_waiting(
                connection, (GATEWAY, PAYMENT.name), after=after, size=size
            ),
        )

    async def wake(self, saga_ids: Collection[str]) -> int:
        """Make these sagas due now, before other retries; returns how many of them waited."""
        if not saga_ids:
            return 0
        return await in_transaction(
            self._database,
            "saga_wake",
            lambda connection: saga_waiting.wake(connection, saga_ids),
            idempotent=True,
        )

    async def _decide(
        self,
        connection: Connection,
        commands: Sequence[JournalCommand],
        *,
        wait_for_locks: bool,
    ) -> list[Outcome[None]]:
        owned, blocked = await store.lock_owned(
            connection, {command.owned for command in commands}, wait_for_locks=wait_for_locks
        )
        # One element per row: of several writes of one saga the newest counts.
        writes: dict[store.OwnedKey, WriteSaga] = {}
        for one in commands:
            if isinstance(one, WriteSaga) and one.owned in owned:
                newest = writes.setdefault(one.owned, one)
                if one.saga.snapshot > newest.saga.snapshot:
                    writes[one.owned] = one
        renewals = {c.owned: c for c in commands if isinstance(c, RenewLease) and c.owned in owned}
        # A row that is not written has a newer snapshot of the same owner.
        await store.write(connection, writes.values())
        await store.renew(connection, renewals.values())
        return [_outcome(command.owned, owned, blocked) for command in commands]


def _outcome(
    saga: store.OwnedKey, owned: set[store.OwnedKey], blocked: frozenset[store.OwnedKey]
) -> Outcome[None]:
    if saga in owned:
        return None
    return RowLocked(saga[0]) if saga in blocked else SagaLost()
