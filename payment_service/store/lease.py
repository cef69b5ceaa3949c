"""Leases: which replica works on an open payment, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.row_locks import CLOCK, locked
from common.db.unnest import arrays, same, unnest
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import PaymentState
from payment_service.store.payment import to_confirmation
from payment_service.tables import payments

_lease_end = CLOCK + sa.bindparam("lease", type_=sa.Interval)

_due = locked(
    payments,
    sa.select(payments.c.payment_id)
    .where(payments.c.due_time <= CLOCK)
    .limit(sa.bindparam("size")),
    order_by=[payments.c.due_time],
    skip_locked=True,
    name="due",
)
_pending = payments.c.state == PaymentState.PENDING
# A claim whose lease expired may have been sent: from now on it is UNKNOWN, and its key is never
# freed.
_ACQUIRE: Final = (
    sa.update(payments)
    .values(
        state=sa.case((_pending, PaymentState.UNKNOWN.value), else_=payments.c.state),
        update_time=sa.case(
            (_pending, sa.func.greatest(payments.c.update_time, CLOCK)),
            else_=payments.c.update_time,
        ),
        holder=sa.bindparam("holder", type_=payments.c.holder.type),
        due_time=_lease_end,
        tries=payments.c.tries + 1,
        version=payments.c.version + 1,
    )
    .where(payments.c.payment_id == _due.c.payment_id)
    .returning(payments)
)

_held = unnest("held", *payments.c["payment_id", "holder"])
# A locked row is not waited for: another transaction records its outcome or acquires it just now.
_kept = locked(
    payments,
    sa.select(payments.c.payment_id).join(_held, same(payments, _held)),
    order_by=[payments.c.payment_id],
    skip_locked=True,
    name="kept",
)
# The version stays: nothing is decided, and the next decision sets the time anew.
_RENEW: Final = (
    sa.update(payments)
    .values(due_time=_lease_end)
    .where(payments.c.payment_id == _kept.c.payment_id)
)


async def acquire_due(
    connection: AsyncConnection, *, holder: str, lease: timedelta, size: int
) -> list[Confirmation]:
    """Give ``holder`` the leases of at most ``size`` payments that are due and not locked."""
    rows = await connection.execute(_ACQUIRE, {"holder": holder, "lease": lease, "size": size})
    return [to_confirmation(row) for row in rows]


async def renew(
    connection: AsyncConnection, holders: Mapping[str, str], *, lease: timedelta
) -> int:
    """Renew the leases of ``holders``, by payment_id; returns how many they still hold."""
    rows = [{"payment_id": payment_id, "holder": holder} for payment_id, holder in holders.items()]
    return (await connection.execute(_RENEW, {**arrays(_held, rows), "lease": lease})).rowcount
