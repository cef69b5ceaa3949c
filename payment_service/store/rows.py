"""Rows ⇄ model, and the types that statements share."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from common.money import Money
from payment_service.model import Confirmation, Payment, State

RequestId = tuple[str, str]
"""A confirmation by (user_id, request_id)."""

UUID: Final = sa.UUID(as_uuid=False)
TIME: Final = sa.DateTime(timezone=True)
NOW: Final = sa.func.clock_timestamp(type_=TIME)


def to_confirmation(row: sa.Row[Any]) -> Confirmation:
    payment = Payment(
        row.payment_id,
        row.order_id,
        row.user_id,
        Money(row.currency_code, row.amount_minor),
        row.payment_key,
        State(row.state),
        row.gateway,
        row.gateway_transaction_id,
        row.failure_code,
        row.create_time,
        row.update_time,
    )
    return Confirmation(
        payment,
        row.request_id,
        row.cancel_reason,
        row.cancel_request_id,
        row.holder,
        row.due_time,
        row.tries,
        row.version,
    )


def values_of(confirmation: Confirmation) -> dict[str, Any]:
    payment = confirmation.payment
    return {
        "payment_id": payment.payment_id,
        "payment_key": payment.payment_key,
        "user_id": payment.user_id,
        "request_id": confirmation.request_id,
        "order_id": payment.order_id,
        "currency_code": payment.amount.currency_code,
        "amount_minor": payment.amount.amount_minor,
        "gateway": payment.gateway,
        "state": payment.state,
        "gateway_transaction_id": payment.gateway_transaction_id,
        "failure_code": payment.failure_code,
        "cancel_reason": confirmation.cancel_reason,
        "cancel_request_id": confirmation.cancel_request_id,
        "holder": confirmation.holder,
        "due_time": confirmation.due_time,
        "tries": confirmation.tries,
        "version": confirmation.version,
        "create_time": payment.create_time,
        "update_time": payment.update_time,
    }
