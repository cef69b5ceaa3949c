"""Who is at work on which open payment: taking up what is due, and keeping what is held."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from payment_service.model import Confirmation, State
from payment_service.store.rows import NOW, UUID, to_confirmation
from payment_service.tables import payments

_due = (
    sa.select(payments.c.payment_id)
    .where(payments.c.due_time <= sa.func.clock_timestamp())
    .order_by(payments.c.due_time)
    .limit(sa.bindparam("size"))
    .with_for_update(key_share=True, skip_locked=True)
    .cte("due")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
_pending = payments.c.state == State.PENDING
# A claim whose lease ran out may have been sent: from here on it is unknown, and nobody frees it.
_TAKE: Final = (
    sa.update(payments)
    .values(
        state=sa.case((_pending, State.UNKNOWN.value), else_=payments.c.state),
        update_time=sa.case(
            (_pending, sa.func.greatest(payments.c.update_time, NOW)),
            else_=payments.c.update_time,
        ),
        holder=sa.bindparam("holder", type_=UUID),
        due_time=NOW + sa.bindparam("lease", type_=sa.Interval),
        tries=payments.c.tries + 1,
        version=payments.c.version + 1,
    )
    .where(payments.c.payment_id == _due.c.payment_id)
    .returning(payments)
)


async def take(
    connection: AsyncConnection, *, holder: str, lease: timedelta, size: int
) -> list[Confirmation]:
    """Take up at most ``size`` payments that are due and that nobody else is just taking."""
    rows = await connection.execute(_TAKE, {"holder": holder, "lease": lease, "size": size})
    return [to_confirmation(row) for row in rows]


_held = unnest("held", payment_id=UUID, holder=UUID)
# A row that somebody has locked is being settled or taken up just now: it is not waited for.
_kept = (
    sa.select(payments.c.payment_id)
    .join(
        _held,
        sa.and_(payments.c.payment_id == _held.c.payment_id, payments.c.holder == _held.c.holder),
    )
    .with_for_update(key_share=True, skip_locked=True, of=payments)
    .cte("kept")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
# No new version: nothing is decided, and whoever decides next sets the time anew.
_RENEW: Final = (
    sa.update(payments)
    .values(due_time=sa.func.clock_timestamp() + sa.bindparam("lease", type_=sa.Interval))
    .where(payments.c.payment_id == _kept.c.payment_id)
)


async def renew(
    connection: AsyncConnection, holders: Mapping[str, str], *, lease: timedelta
) -> int:
    """Have those payments kept that these holders, by payment_id, still hold; returns how many."""
    given = arrays("held", payment_id=list(holders), holder=list(holders.values()))
    return (await connection.execute(_RENEW, given | {"lease": lease})).rowcount
