"""Decisions about sagas: a saga begins and ends in the transaction of its order's transition.

PayOrder      PENDING → PAYING                       and the saga's row, RUNNING
CancelOrder   PAID → CANCELLING                      and the saga's row, RUNNING
CloseSaga     PAYING → PAID | PENDING | EXPIRED,     and the saga's end and its record
              CANCELLING → CANCELLED
              of a RESOLVING saga: the order stays as it is
NoteFailure   the order stays as it is, with the reason why its saga cannot end
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from common.db.idempotency import REFUSED, IdempotencyRecords, Record
from common.errors import CurrencyMismatch, Overloaded, RequestIdReused
from common.request_key import RequestKey, Result
from order_service.errors import SagaLost
from order_service.model.order import CancelOrder, Order, PayOrder
from order_service.model.saga import ACTIVE, LIVE, Saga, SagaKind, SagaRequest, SagaState
from order_service.model.saga_command import CloseSaga, NoteFailure, PayAttempt
from order_service.model.saga_input import CancelInput, Failure, PayInput
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, plan_of
from order_service.use_cases.order_batch import OrderBatch

ORDER_BODY: Final[TypeAdapter[Order]] = TypeAdapter(Order)
"""An order in an idempotency record."""
_FAILURE_BODY: Final[TypeAdapter[Failure]] = TypeAdapter(Failure)


@dataclass(frozen=True, slots=True)
class SagaBegun:
    """The order's saga has begun and has not ended."""

    order: Order
    saga_id: str | None
    """None if another request began it."""
    saga: Saga | None = None
    """The saga, if this very command began it: its caller has to run it."""


# -- begin ---------------------------------------------------------------------------------------


def begin_payment(
    batch: OrderBatch, records: IdempotencyRecords, command: PayOrder, *, pay_within_s: float
) -> Result[Order] | SagaBegun:
    """PENDING → PAYING with a new saga, or the attempt that this request began before."""
    order = batch.order_of(command)
    record = records.get(command.key)
    if record is not None:
        return stored_response(record, command)
    request = SagaRequest(SagaKind.PAY_ORDER, command.user_id, command.request_id)
    begun = batch.sagas_by_request.get(request)
    if begun is not None:
        if begun.asked.digest != command.digest.hex() or begun.state not in LIVE:
            # Other content, or its record was deleted after 30 days.
            raise RequestIdReused(request_id=command.request_id)
        begun.time_left_s = pay_within_s
        return find_begun(batch, command, order)
    if not command.has_capacity:
        raise Overloaded(lane="saga")
    asked = _pay_input(order, command)
    paying = order.begin_payment(
        batch.now, coupon_id=asked.coupon_id if asked.uses_coupon else None
    )
    amount = command.balance_amount
    if amount is not None and amount.currency_code != order.currency_code:
        raise CurrencyMismatch(
            expected=order.currency_code, got=amount.currency_code, order_id=order.order_id
        )
    asked.check(order.order_id)
    saga = batch.begin_saga(PAY_ORDER.begin(command.saga_id, order, asked, batch.now))
    saga.time_left_s = pay_within_s
    return SagaBegun(batch.move(paying), saga.saga_id, saga)


def begin_cancel(batch: OrderBatch, command: CancelOrder, order: Order) -> SagaBegun:
    """PAID → CANCELLING with the saga that gives everything back."""
    asked = CancelInput(
        request_id=command.request_id,
        digest=command.digest.hex(),
        currency_code=order.currency_code,
        reason=command.reason,
        pay_saga_id=batch.payers[order.order_id],
        coupon_id=order.coupon_id,
        balance_minor=order.paid_by_balance_minor,
        gateway_minor=order.paid_by_gateway_minor,
    )
    saga = batch.begin_saga(CANCEL_ORDER.begin(command.saga_id, order, asked, batch.now))
    cancelling = order.begin_cancel(command.reason, batch.now)
    return SagaBegun(batch.move(cancelling), saga.saga_id, saga)


def find_begun(batch: OrderBatch, command: PayOrder | CancelOrder, order: Order) -> SagaBegun:
    """The saga that this request began.

    It is this very call's if it has the call's saga_id and no replica has taken it over: then an
    earlier attempt at the batch committed it, and the reply to its COMMIT was lost.
    """
    kind = SagaKind.PAY_ORDER if isinstance(command, PayOrder) else SagaKind.CANCEL_ORDER
    saga = batch.sagas_by_request.get(SagaRequest(kind, command.user_id, command.request_id))
    if saga is None:
        return SagaBegun(order, None)
    own = saga.saga_id == command.saga_id and saga.epoch == 1 and not saga.waits
    return SagaBegun(order, saga.saga_id, saga if own else None)


def stored_response(record: Record, command: PayOrder) -> Result[Order]:
    """The response of an attempt to pay that has ended, or its refusal raised."""
    body = record.body_for(command)
    if record.state == REFUSED:
        raise _FAILURE_BODY.validate_json(body).refusal()
    return Result(ORDER_BODY.validate_json(body), replayed=True)


def _pay_input(order: Order, command: PayOrder) -> PayInput:
    amount = command.balance_amount
    return PayInput(
        request_id=command.request_id,
        digest=command.digest.hex(),
        currency_code=order.currency_code,
        subtotal_minor=order.subtotal_minor,
        coupon_id=command.coupon_id,
        balance_minor=None if amount is None else amount.amount_minor,
        payment_key=command.payment_key,
    )


# -- end -----------------------------------------------------------------------------------------


def close_saga_keys(command: CloseSaga) -> list[RequestKey]:
    """The record of the request that the saga answers. A cancellation was answered before."""
    return [PayAttempt(command.saga).key] if command.saga.kind is SagaKind.PAY_ORDER else []


def close_saga(batch: OrderBatch, records: IdempotencyRecords, command: CloseSaga) -> Result[Order]:
    """End a saga whose steps are done or undone. Raises SagaLost if its epoch has changed."""
    saga = command.saga
    _require_own(batch, saga)
    plan = plan_of(saga)
    assert plan is not None, "a saga is closed by a release that knows its plan"
    closed = plan.closed(saga, batch.now)
    if closed.state is SagaState.RESOLVING:
        # Its replica has released the order. Whatever it still writes must not own it again.
        closed.epoch += 1
    order = batch.orders[saga.order_id]
    if saga.state is not SagaState.RESOLVING:
        order = _move(batch, records, order, closed)
    batch.write_saga(closed)
    return Result(order)


def note_failure(batch: OrderBatch, command: NoteFailure) -> Result[Order]:
    """Show on the order why its saga cannot end. Raises SagaLost if its epoch has changed."""
    _require_own(batch, command.saga)
    order = batch.orders[command.order_id]
    return Result(batch.move(order.note_failure(command.reason, batch.now)))


def _require_own(batch: OrderBatch, saga: Saga) -> None:
    """Raise SagaLost unless the row still has the epoch of the replica that runs the saga."""
    row = batch.owners.get(saga.saga_id)
    if row is None or row.epoch != saga.epoch or row.state not in ACTIVE:
        raise SagaLost(saga_id=saga.saga_id)


def _move(batch: OrderBatch, records: IdempotencyRecords, order: Order, saga: Saga) -> Order:
    """Move the order as the saga's outcome demands, and record the response."""
    if isinstance(saga.asked, CancelInput):
        order = batch.move(order.complete_cancel(saga.asked.reason, batch.now))
    elif saga.failure is not None:
        order = batch.move(order.return_to_pending(saga.failure.reason, batch.now))
        records.refuse(PayAttempt(saga), saga.failure, _FAILURE_BODY)
    else:
        order = batch.move(_paid(batch, order, saga))
        records.answer(PayAttempt(saga), order, ORDER_BODY)
        batch.payers[order.order_id] = saga.saga_id
    return order


def _paid(batch: OrderBatch, order: Order, saga: Saga) -> Order:
    parts = saga.parts
    return order.complete_payment(
        batch.now,
        discount_minor=parts.discount_minor,
        paid_by_balance_minor=parts.balance_minor,
        paid_by_gateway_minor=parts.gateway_minor,
        coupon_id=saga.asked.coupon_id if saga.asked.uses_coupon else None,
        payment_id=saga.facts.payment_id,
    )
