"""Settled payments that the gateway is asked about again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from common.db.row_locks import TIME, locked
from common.db.statements import Connection
from common.db.unnest import same
from payment_service.model.confirmation import Confirmation
from payment_service.store.payment import readable_confirmations
from payment_service.tables import payments

AGAIN_AFTER: Final = timedelta(minutes=10)
"""When a payment is due again whose check did not end."""

# Not clock_timestamp(): a condition on an index may not change while it is evaluated.
_now = sa.func.now(type_=TIME)
_due = locked(
    payments,
    sa.select(payments.c.payment_id)
    .where(payments.c.check_time <= _now)
    .limit(sa.bindparam("size")),
    order_by=[payments.c.check_time],
    skip_locked=True,
    name="due",
)
CLAIM: Final = (
    sa.update(payments)
    .values(check_time=_now + sa.literal(AGAIN_AFTER, sa.Interval))
    .where(same(payments, _due, ["payment_id"]))
    .returning(payments)
)
# If the payment was changed meanwhile, so was the time of its next check. A locked row is about to
# be changed, or is due again after a while.
_checked = locked(
    payments,
    sa.select(payments.c.payment_id).where(
        payments.c.payment_id == sa.bindparam("checked_id"),
        payments.c.check_time == sa.bindparam("claimed_until"),
    ),
    order_by=[payments.c.payment_id],
    skip_locked=True,
    name="checked",
)
_MARK: Final = (
    sa.update(payments)
    .values(check_time=sa.bindparam("next_time"))
    .where(same(payments, _checked, ["payment_id"]))
)


async def claim_due(connection: Connection, *, size: int) -> tuple[list[Confirmation], bool]:
    """At most ``size`` payments that are due for a check and not locked, the longest due first.

    Other replicas do not claim them for AGAIN_AFTER. One that cannot be read is left for as long.
    Also returns whether there may be more.
    """
    rows = (await connection.execute(CLAIM, {"size": size})).all()
    return readable_confirmations(rows), len(rows) == size


def claimed_at(claimed: Confirmation) -> datetime:
    """When the payment was claimed, by the database's clock."""
    assert claimed.check_time is not None
    return claimed.check_time - AGAIN_AFTER


async def mark_checked(
    connection: Connection, claimed: Confirmation, next_time: datetime | None
) -> None:
    """Note when the payment is checked next, unless it was changed since it was claimed."""
    await connection.execute(
        _MARK,
        {
            "checked_id": claimed.payment.payment_id,
            "claimed_until": claimed.check_time,
            "next_time": next_time,
        },
    )
