"""Leases: which replica works on an open payment, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from common.db.row_locks import CLOCK, locked
from common.db.statements import Connection
from common.db.unnest import arrays, same, unnest
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import PaymentState
from payment_service.store.payment import readable_confirmations
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
    .where(same(payments, _due, ["payment_id"]))
    .returning(payments)
)

UNREADABLE_S: Final = 10.0
UNREADABLE_S_MAX: Final = 600.0
"""The pauses of a payment that this release cannot read, the first and the longest."""
_POSTPONE: Final = (
    sa.update(payments)
    .values(
        holder=None,
        due_time=CLOCK
        + sa.func.least(
            UNREADABLE_S_MAX,
            UNREADABLE_S * sa.func.power(2, sa.func.least(payments.c.tries - 1, 16)),
        )
        * sa.literal_column("interval '1 second'", sa.Interval),
    )
    .where(
        payments.c.payment_id
        == sa.any_(sa.bindparam("payment_ids", type_=ARRAY(payments.c.payment_id.type)))
    )
)

_held = unnest("held", *payments.c["payment_id", "holder"])
# A locked row is not waited for: another transaction records its outcome or acquires it just now.
_kept = locked(
    payments,
    sa.select(payments.c.payment_id).join(_held, same(payments, _held)),
    order_by=[_held.c.payment_id],
    skip_locked=True,
    name="kept",
)
# The version stays: nothing is decided, and the next decision sets the time anew.
_RENEW: Final = (
    sa.update(payments).values(due_time=_lease_end).where(same(payments, _kept, ["payment_id"]))
)


async def acquire_due(
    connection: Connection, *, holder: str, lease: timedelta, size: int
) -> list[Confirmation]:
    """Give ``holder`` the leases of at most ``size`` payments that are due and not locked.

    A payment that cannot be read is postponed, each time for longer, and does not stop the others.
    """
    parameters = {"holder": holder, "lease": lease, "size": size}
    rows = (await connection.execute(_ACQUIRE, parameters)).all()
    found = readable_confirmations(rows)
    readable_ids = {confirmation.payment.payment_id for confirmation in found}
    if unreadable := {row.payment_id for row in rows} - readable_ids:
        await connection.execute(_POSTPONE, {"payment_ids": sorted(unreadable)})
    return found


async def renew(connection: Connection, holders: Mapping[str, str], *, lease: timedelta) -> int:
    """Renew the leases of ``holders``, by payment_id; returns how many they still hold."""
    rows = [{"payment_id": payment_id, "holder": holder} for payment_id, holder in holders.items()]
    return (await connection.execute(_RENEW, {**arrays(_held, rows), "lease": lease})).rowcount
