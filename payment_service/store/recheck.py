"""Payments that the gateway is asked about again, since others may have refunded them there."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.row_locks import CLOCK, TIME, locked
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import NOT_CHARGED, PaymentState
from payment_service.store.payment import to_confirmation
from payment_service.tables import payments

INTERVAL: Final = timedelta(days=1)
AGAIN_AFTER: Final = timedelta(minutes=10)
"""When a payment is due again whose check did not end."""

_checked = sa.func.coalesce(payments.c.checked_time, payments.c.create_time, type_=TIME)
_interval = sa.literal(INTERVAL, sa.Interval)
_age_max = sa.bindparam("age_max", type_=sa.Interval)
# The bounds of _checked are those of the index. A payment of the last days was checked later than
# it was created, so the lower bound excludes only older ones. An open payment is looked up anyway.
_due = locked(
    payments,
    sa.select(payments.c.payment_id)
    .where(
        sa.or_(
            payments.c.state == sa.literal_column(f"'{PaymentState.CONFIRMED.value}'"),
            payments.c.failure_code == sa.literal_column(f"'{NOT_CHARGED}'"),
        ),
        _checked > CLOCK - _age_max - _interval,
        _checked <= CLOCK - _interval,
        payments.c.create_time > CLOCK - _age_max - _interval,
        payments.c.due_time.is_(None),
    )
    .limit(sa.bindparam("size")),
    order_by=[_checked],
    skip_locked=True,
    name="due",
)
_CLAIM: Final = (
    sa.update(payments)
    .values(checked_time=CLOCK - _interval + sa.literal(AGAIN_AFTER, sa.Interval))
    .where(payments.c.payment_id == _due.c.payment_id)
    .returning(payments)
)
# After the last check, the payment is not due at any time.
_MARK: Final = (
    sa.update(payments)
    .values(
        checked_time=sa.case(
            (payments.c.create_time > CLOCK - _age_max, CLOCK),
            else_=sa.text("CAST('infinity' AS timestamptz)"),
        )
    )
    .where(payments.c.payment_id == sa.bindparam("checked_id"))
)


async def claim_due(
    connection: AsyncConnection, *, age_max: timedelta, size: int
) -> list[Confirmation]:
    """At most ``size`` settled payments up to ``age_max`` old, unchecked for a day, not locked.

    Other replicas leave them alone for AGAIN_AFTER.
    """
    rows = await connection.execute(_CLAIM, {"age_max": age_max, "size": size})
    return [to_confirmation(row) for row in rows]


async def mark_checked(connection: AsyncConnection, payment_id: str, *, age_max: timedelta) -> None:
    """Note that the gateway reported the payment's state now."""
    await connection.execute(_MARK, {"checked_id": payment_id, "age_max": age_max})
