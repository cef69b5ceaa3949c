"""What operators see of sagas and do to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common.db.engines import Database, reading
from common.errors import InvalidPageToken
from common.ids import is_id
from common.paging import Page
from order_service.errors import SagaNotFound
from order_service.model.saga_commands import ResolveSaga, RetrySaga
from order_service.model.sagas import Saga, State
from order_service.store import saga_reads as store
from order_service.use_cases.order_lane import OrderLane
from order_service.use_cases.saga_moves import Told

_NEWEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Sagas:
    """The sagas of all orders."""

    def __init__(self, database: Database, lane: OrderLane) -> None:
        self._database = database
        self._lane = lane

    async def get(self, saga_id: str) -> Saga:
        """The saga as last written down. Raises SagaNotFound."""
        saga = None
        if is_id(saga_id):
            async with reading(self._database) as connection:
                saga = await store.read(connection, saga_id)
        if saga is None:
            raise SagaNotFound(**({"saga_id": saga_id} if is_id(saga_id) else {}))
        return saga

    async def get_latest(self, order_id: str) -> Saga:
        """The saga of an order that began last. Raises SagaNotFound."""
        saga = None
        if is_id(order_id):
            async with reading(self._database) as connection:
                saga = await store.read_latest(connection, order_id)
        if saga is None:
            raise SagaNotFound(**({"order_id": order_id} if is_id(order_id) else {}))
        return saga

    async def list(self, state: State | None, page: Page) -> tuple[Sequence[Saga], str]:
        """A page of the sagas, newest first, and the next page's token ('' at the end)."""
        before = str(page.after[0]) if page.after else _NEWEST
        if not is_id(before):
            raise InvalidPageToken
        async with reading(self._database) as connection:
            found = await store.read_page(connection, state, before=before, size=page.size + 1)
        if len(found) <= page.size:
            return found, ""
        found = found[: page.size]
        return found, page.token([found[-1].saga_id])

    async def retry(self, saga_id: str, request_id: str) -> Told:
        """Set a saga that needs attention going again. Raises SagaNotFound, SagaNotRetryable."""
        saga = await self.get(saga_id)
        told: Told = await self._lane.submit(RetrySaga(saga_id, saga.order_id, request_id))
        return told

    async def resolve(self, saga_id: str, reason: str, request_id: str) -> Told:
        """Close a saga that needs attention, and move its order the way the saga was going.

        One that had not learnt whether the gateway charged counts as not paid: whoever resolves it
        has seen to that. Raises SagaNotFound, SagaNotRetryable.
        """
        saga = await self.get(saga_id)
        told: Told = await self._lane.submit(
            ResolveSaga(saga_id, saga.order_id, reason, request_id)
        )
        return told
