"""Decisions of operators about sagas.

RetrySaga     a saga that waits is due now
ResolveSaga   a saga that needs attention undoes all that has begun and does not stand

Neither moves the order. A resolved saga releases it (CloseSaga) when nothing that was begun can
take effect any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pydantic import TypeAdapter

from common.db.idempotency import IdempotencyRecords
from common.errors import InvalidField
from common.request_key import Result
from order_service.errors import PaymentOutcomeUnknown, SagaNotFound, SagaNotRetryable
from order_service.model.order import Order
from order_service.model.saga import ACTIVE, Saga, SagaKind, SagaState, StepRecord, StepState
from order_service.model.saga_command import ResolveSaga, RetrySaga, Standing
from order_service.saga.plan import (
    BALANCE,
    PARTICIPANTS,
    PAYMENT,
    UNDO_ONLY_VERSION,
    Plan,
    current_plan,
    plan_of,
)
from order_service.use_cases.order_batch import OrderBatch

_SAGA_BODY: Final[TypeAdapter[Saga]] = TypeAdapter(Saga)


def retry_saga(batch: OrderBatch, records: IdempotencyRecords, command: RetrySaga) -> Result[Saga]:
    """Make a saga due that waits. One that a replica runs just now is returned as it is."""
    saga = _locked_saga(batch, command)
    if (replayed := records.replay(command, _SAGA_BODY)) is not None:
        return replayed
    if saga.state not in ACTIVE:
        raise SagaNotRetryable(saga_id=saga.saga_id, state=saga.state.value)
    if saga.waits:
        saga = saga.copy()
        saga.retry()
        batch.write_saga(saga)
        saga = replace(saga, next_attempt_time=batch.now, update_time=batch.now)
    return records.answer(command, saga, _SAGA_BODY)


def resolve_saga(
    batch: OrderBatch, records: IdempotencyRecords, command: ResolveSaga
) -> Result[Saga]:
    """Close a saga by an operator's decision.

    In the same transaction the epoch rises: a replica that was paused can neither write the saga
    any more nor begin anything. What it had begun is undone under its own request_id.
    """
    saga = _locked_saga(batch, command)
    if (replayed := records.replay(command, _SAGA_BODY)) is not None:
        return replayed
    # A copy: if the command is refused, later commands of the batch must not see its changes.
    saga = saga.copy()
    plan = plan_of(saga)
    _require_resolvable(saga, plan)
    if plan is None:
        saga.plan_version = UNDO_ONLY_VERSION
    else:
        saga.plan_version = current_plan(saga.kind).version
    order = batch.orders[saga.order_id]
    for standing in command.standing:
        _let_stand(saga, order, standing, command)
    saga.epoch += 1
    saga.waits = True
    saga.resolve(command.reason, PaymentOutcomeUnknown(order_id=saga.order_id))
    batch.write_saga(saga)
    resolved = replace(saga, next_attempt_time=batch.now, update_time=batch.now)
    return records.answer(command, resolved, _SAGA_BODY)


def _locked_saga(batch: OrderBatch, command: RetrySaga | ResolveSaga) -> Saga:
    saga = batch.sagas.get(command.saga_id)
    if saga is None:
        raise SagaNotFound(saga_id=command.saga_id)
    return saga


def _require_resolvable(saga: Saga, plan: Plan | None) -> None:
    """Raise SagaNotRetryable for a saga that ends by itself, or that cannot be undone."""
    needs_attention = saga.state is SagaState.NEEDS_ATTENTION and not saga.resolution_reason
    # The earlier release closed sagas without undoing anything.
    unaccounted = saga.state is SagaState.RESOLVED and plan is not None and _is_left(saga)
    unknown = plan is None and saga.state in ACTIVE
    if not (needs_attention or unaccounted or unknown):
        raise SagaNotRetryable(saga_id=saga.saga_id, state=saga.state.value)
    if plan is None:
        for step in saga.steps:
            begun = step.to_undo or (step.undoes and not step.over)
            if begun and step.participant not in PARTICIPANTS:
                raise SagaNotRetryable(saga_id=saga.saga_id, step=step.name)


def _is_left(saga: Saga) -> bool:
    """Whether a saga that was closed has left an effect that was not undone."""
    if saga.kind is SagaKind.PAY_ORDER and saga.failure is None:
        return False  # It was closed as paid.
    return any(step.to_undo or (step.undoes and not step.over) for step in saga.steps)


# -- what stands ---------------------------------------------------------------------------------


def _let_stand(saga: Saga, order: Order, standing: Standing, command: ResolveSaga) -> None:
    """Record an effect as standing. Raises InvalidField unless it is known to have landed."""
    step = next((step for step in saga.steps if step.name == standing.step), None)
    if step is None or not step.participant:
        raise InvalidField("standing", f"{standing.step} is no step of the saga with an effect")
    if step.participant == PAYMENT.name:
        amount_minor = _left_of_payment(step, standing, command)
    else:
        amount_minor = _landed(saga, order, step, standing)
    step.state = StepState.STANDING
    step.standing_minor, step.standing_reason = amount_minor, standing.reason


def _left_of_payment(step: StepRecord, standing: Standing, command: ResolveSaga) -> int:
    left = command.left_of_payment
    begun = step.undo_begun or (step.undoes and step.state is not StepState.PENDING)
    if left is None or (begun and not command.refund_refused):
        raise InvalidField(
            "standing",
            f"{step.name}: it is not known that its payment is confirmed and will not be refunded;"
            " undo it, or settle it with PaymentService.ResolvePayment first",
        )
    if standing.amount is not None and standing.amount != left:
        raise InvalidField(
            "standing",
            f"{step.name}: {left.amount_minor} {left.currency_code} of its payment are left; record"
            " what was given back with PaymentService.ResolvePayment first",
        )
    return left.amount_minor


def _landed(saga: Saga, order: Order, step: StepRecord, standing: Standing) -> int:
    if standing.amount is not None:
        raise InvalidField("standing", f"{step.name}: only a payment has an amount")
    # Of a cancellation, the effect is that of the saga that paid, unless it may be undone already.
    landed = step.state is (StepState.PENDING if step.undoes else StepState.DONE)
    # One that the earlier release closed is named by the audit if its effect is in force.
    if not landed or (step.undo_begun and saga.state is not SagaState.RESOLVED):
        raise InvalidField("standing", f"{step.name} is not known to have landed: it is undone")
    if step.participant == BALANCE.name:
        return saga.parts.balance_minor
    # An order that is being cancelled keeps the discount with which it was paid.
    return order.discount_minor if step.undoes else saga.facts.discount_minor
