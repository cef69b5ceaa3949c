"""Rows of sagas, written and taken over by the journals of two replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from common.db.database import Database
from common.db.writes import execute_together
from common.ids import new_id
from order_service.model.order import Order
from order_service.model.saga import Saga, SagaState, StepRecord
from order_service.model.saga_command import WriteSaga
from order_service.model.saga_input import SagaInput
from order_service.saga.journal import SagaJournal
from order_service.saga.plan import PAY_ORDER, Plan
from order_service.store import journal as journal_store
from order_service.store import saga as store
from tests.support.sagas import pay_input, saga_of

LEASE_S: Final = 60.0


class Sagas:
    """The rows of sagas, and journals of replicas."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.journals: list[SagaJournal] = []
        self.one, self.two = self.journal("one"), self.journal("two")

    def journal(self, owner: str) -> SagaJournal:
        async def never(saga: Saga, _reason: str = "") -> Order:
            raise AssertionError(saga)

        self.journals.append(SagaJournal(self.database, owner=owner, close=never, note=never))
        return self.journals[-1]

    async def add(
        self,
        plan: Plan = PAY_ORDER,
        asked: SagaInput | None = None,
        *,
        lease_s: float = LEASE_S,
        **fields: Any,
    ) -> Saga:
        """A new saga of replica one, in its row. No step has begun."""
        now = datetime.now(UTC)
        own = {"saga_id": new_id(), "order_id": new_id(), "create_time": now, "update_time": now}
        asked = replace(asked or pay_input(), request_id=new_id())
        saga = saga_of(plan, asked, begun=False, **{**own, **fields})
        async with self.database.begin() as connection:
            await execute_together(connection, store.adding([saga], owner="one", lease_s=lease_s))
        return saga

    async def read(self, saga: Saga) -> Saga:
        async with self.database.reads.connect() as connection:
            found = await store.read_saga(connection, saga.saga_id)
        assert found is not None
        return found

    async def close(self, saga: Saga) -> None:
        ended = saga.closed(SagaState.COMPLETED)
        ended.snapshot += 1
        closed = WriteSaga(ended, 0.0)
        async with self.database.begin() as connection:
            await journal_store.write(connection, [closed])


async def taken_over(
    journal: SagaJournal,
    capacity: int = 1_000,
    *,
    uses_gateway: bool = True,
    retries: int | None = None,
    away: Sequence[str] = (),
) -> list[Saga]:
    taken = await journal.take_over(
        lease_s=LEASE_S,
        uses_gateway=uses_gateway,
        capacity=capacity,
        retries=capacity if retries is None else retries,
        away=away,
    )
    return list(taken.sagas)


def begin(saga: Saga, step: int) -> StepRecord:
    record = saga.steps[step]
    saga.begin(record, datetime.now(UTC))
    return record
