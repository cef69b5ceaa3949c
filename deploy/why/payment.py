"""Payments: their rows, and the events that they tell of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.ids import is_id
from deploy.why.event import Event, Row, money, short
from deploy.why.selection import Records, Selection, newest_of, rows

SERVICE: Final = "payment"

_PAYMENT: Final = """
SELECT payment_id::text AS payment_id, payment_key, user_id, request_id, order_id, currency_code,
       amount_minor, gateway, state, gateway_transaction_id, failure_code, cancel_request_id,
       cancel_reason, due_time, tries, create_time, update_time, refunded_minor,
       refunded_outside_minor, cancel_request_time, refund_refusal_code, resolution_reason,
       unsupported_status
  FROM payments
"""
_PAYMENTS: Final = sa.text(
    _PAYMENT
    + """
 WHERE payment_id = ANY (CAST(:payment_ids AS uuid[]))
    OR user_id = :user_id AND (order_id = ANY (CAST(:order_ids AS text[]))
                               OR request_id = ANY (CAST(:request_ids AS text[]))
                               OR cancel_request_id = ANY (CAST(:request_ids AS text[])))
 ORDER BY create_time
"""
)
_NEWEST: Final = sa.text(
    f"{_PAYMENT} WHERE user_id = :user_id ORDER BY create_time DESC, payment_id DESC LIMIT :size"
)


async def read(connection: AsyncConnection, selection: Selection, records: Records) -> None:
    """Add the selection's payments."""
    if selection.newest:
        size = selection.newest + 1
        found = await rows(connection, _NEWEST, user_id=selection.user_id, size=size)
        records.payments += newest_of(records, "payments", found, selection.newest)
        return
    records.payments += await rows(
        connection,
        _PAYMENTS,
        payment_ids=[each for each in selection.payment_ids if is_id(each)],
        user_id=selection.user_id,
        order_ids=list(selection.order_ids),
        request_ids=list(selection.request_ids),
    )


def events(records: Records) -> Iterator[Event]:
    """What the rows of payments tell of."""
    for payment in records.payments:
        name = f"payment {short(payment['payment_id'])}"
        amount = money(payment["amount_minor"], payment["currency_code"])
        ids = {key: payment[key] for key in ("payment_id", "order_id", "payment_key", "request_id")}
        claimed = f"{name} asked of {payment['gateway']}, key {payment['payment_key']}"
        yield Event(payment["create_time"], SERVICE, claimed, amount, "→ PENDING", ids)
        if payment["cancel_request_time"] is not None:
            cancelled = ids | {"request_id": payment["cancel_request_id"] or ""}
            what = f"{name}: cancellation stored"
            yield Event(payment["cancel_request_time"], SERVICE, what, amount, "", cancelled)
        if payment["update_time"] > payment["create_time"] or payment["state"] != "PENDING":
            yield Event(
                payment["update_time"],
                SERVICE,
                f"{name} last changed{_why(payment)}",
                _refunded(payment) or amount,
                f"→ {payment['state']}",
                ids,
            )
        if payment["due_time"] is not None:
            what = f"{name} is to be looked at again, {payment['tries']} tries so far"
            yield Event(payment["due_time"], SERVICE, what, "", payment["state"], ids)


def _why(payment: Row) -> str:
    told = ("failure_code", "refund_refusal_code", "unsupported_status", "resolution_reason")
    found = [str(payment[name]) for name in told if payment[name]]
    return f": {', '.join(found)}" if found else ""


def _refunded(payment: Row) -> str:
    minor = refunded_minor(payment)
    return money(-minor, payment["currency_code"]) if minor else ""


def refunded_minor(payment: Row) -> int:
    """How much was given back. Earlier releases left 0 where that was the whole amount."""
    whole: int = payment["amount_minor"] if payment["state"] == "CANCELLED" else 0
    return payment["refunded_minor"] or whole
