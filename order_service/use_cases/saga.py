"""Sagas, as operators read, retry and resolve them."""

from __future__ import annotations

from typing import Final

from common.db.engines import Database, read_by_id, reading
from common.errors import InvalidPageToken
from common.ids import is_id
from common.paging import Page
from common.request_key import Result
from order_service.errors import SagaNotFound
from order_service.model.saga import Saga, SagaState
from order_service.model.saga_command import ResolveSaga, RetrySaga
from order_service.store import saga as store
from order_service.use_cases.order_decider import OrderLane

_ID_MAX: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Sagas:
    """The sagas of all orders."""

    def __init__(self, database: Database, lane: OrderLane) -> None:
        self._database = database
        self._lane = lane

    async def get_saga(self, saga_id: str) -> Saga:
        """The saga as last journalled. Raises SagaNotFound."""
        saga = await read_by_id(self._database, saga_id, store.read_saga)
        if saga is None:
            raise SagaNotFound(saga_id=saga_id)
        return saga

    async def get_latest_saga(self, order_id: str) -> Saga:
        """The newest saga of an order. Raises SagaNotFound."""
        saga = await read_by_id(self._database, order_id, store.read_latest)
        if saga is None:
            raise SagaNotFound(order_id=order_id)
        return saga

    async def list_sagas(self, state: SagaState | None, page: Page) -> tuple[list[Saga], str]:
        """A page of the sagas, newest first, and the next page's token ('' at the end)."""
        before = str(page.after[0]) if page.after else _ID_MAX
        if not is_id(before):
            raise InvalidPageToken
        async with reading(self._database) as connection:
            found = await store.read_sagas(connection, state, before=before, size=page.size + 1)
        return page.cut(found, lambda saga: [saga.saga_id])

    async def retry(self, saga_id: str, request_id: str) -> Result[Saga]:
        """Let a saga that needs attention continue. Raises SagaNotFound, SagaNotRetryable."""
        saga = await self.get_saga(saga_id)
        return await self._lane.submit(RetrySaga(saga_id, saga.order_id, request_id))

    async def resolve(self, saga_id: str, reason: str, request_id: str) -> Result[Saga]:
        """Close a saga that needs attention, and move its order the way the saga was going.

        If it is unknown whether the gateway charged, the attempt counts as not paid: the
        operator has made sure of that. Raises SagaNotFound, SagaNotRetryable.
        """
        saga = await self.get_saga(saga_id)
        return await self._lane.submit(ResolveSaga(saga_id, saga.order_id, reason, request_id))
