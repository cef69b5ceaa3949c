"""Sagas, as operators read, retry and resolve them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pydantic import TypeAdapter

from common.db.database import Database
from common.db.errors import RecordConflict
from common.db.idempotency import IdempotencyStore
from common.db.repeat import in_transaction, read, read_by_id
from common.db.statements import Connection
from common.errors import InvalidPageToken, RequestInProgress
from common.ids import is_id
from common.paging import Found, Page
from common.request_key import Result
from common.rpc.convert import money_from
from order_service.clients import Services, get_payments
from order_service.errors import SagaNotFound
from order_service.model.saga import Saga, SagaState
from order_service.model.saga_command import ResolveSaga, RetrySaga, RetrySagas
from order_service.saga.payment_poll import confirmation_of, payment_step
from order_service.saga.plan import plan_of
from order_service.store import saga as store
from order_service.store import saga_waiting
from order_service.use_cases.order_lane import OrderLane
from tally.payment.v1.payment_pb2 import Payment

_COUNT_BODY: Final[TypeAdapter[int]] = TypeAdapter(int)
_ID_MAX: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Sagas:
    """The sagas of all orders."""

    def __init__(
        self,
        database: Database,
        lane: OrderLane,
        services: Services,
        idempotency: IdempotencyStore,
    ) -> None:
        self._database = database
        self._lane = lane
        self._services = services
        self._idempotency = idempotency

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

    async def list_sagas(
        self, state: SagaState | None, user_id: str | None, page: Page
    ) -> Found[Saga]:
        """A page of the sagas, newest first: those in the state and of the user, if given."""
        before = str(page.after[0]) if page.after else _ID_MAX
        if not is_id(before):
            raise InvalidPageToken
        found = await read(
            self._database,
            lambda connection: store.read_sagas(
                connection, state, user_id, before=before, size=page.size + 1
            ),
        )
        return Found(page, found, lambda saga: [saga.saga_id])

    async def retry(self, saga_id: str, request_id: str) -> Result[Saga]:
        """Make a saga due that waits. Raises SagaNotFound, SagaNotRetryable if it has ended."""
        saga = await self.get_saga(saga_id)
        return await self._lane.submit(RetrySaga(saga_id, saga.order_id, request_id))

    async def retry_many(self, command: RetrySagas) -> Result[int]:
        """Make all sagas due that wait and match the command; returns how many.

        Raises RequestIdReused, RequestInProgress or DatabaseUnavailable.
        """

        async def retry(connection: Connection) -> Result[int]:
            records = await self._idempotency.load(connection, [command.key])
            result = records.replay(command, _COUNT_BODY)
            if result is None:
                count = await saga_waiting.retry(connection, command)
                result = records.answer(command, count, _COUNT_BODY)
            await self._idempotency.save(connection, records)
            return result

        try:
            return await in_transaction(self._database, "retry_sagas", retry, idempotent=True)
        except RecordConflict:
            raise RequestInProgress(request_id=command.request_id) from None

    async def resolve(self, command: ResolveSaga) -> Result[Saga]:
        """Close a saga: undo all that has begun, except what the command lets stand.

        Raises SagaNotFound, SagaNotRetryable, InvalidField naming standing, RequestIdReused, or
        what the payment service refuses when it is asked for a payment that should stand.
        """
        saga = await self.get_saga(command.saga_id)
        command = replace(command, order_id=saga.order_id)
        if any(_is_payment(saga, standing.step) for standing in command.standing):
            key = command.key
            records = await read(
                self._database, lambda connection: self._idempotency.load(connection, [key])
            )
            if records.get(command.key) is None:
                command = await self._with_payment(command, saga)
        return await self._lane.submit(command)

    async def _with_payment(self, command: ResolveSaga, saga: Saga) -> ResolveSaga:
        """The command with what the payment service knows; the saga's row decides with it."""
        request_id = confirmation_of(saga)
        payment = (await get_payments(self._services, [request_id])).get(request_id)
        if payment is None or payment.state != Payment.STATE_CONFIRMED:
            return command
        refused = bool(payment.refund_refusal_code)
        if payment.HasField("cancel_request_time") and not refused:
            return command
        amount = money_from(payment.amount)
        left_minor = amount.amount_minor - payment.refunded.amount_minor
        left = replace(amount, amount_minor=left_minor)
        return replace(command, left_of_payment=left, refund_refused=refused)


def _is_payment(saga: Saga, name: str) -> bool:
    plan_of(saga)  # It describes the steps of an earlier release.
    step = payment_step(saga)
    return step is not None and step.name == name
