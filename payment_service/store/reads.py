"""Single reads, as last committed."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from payment_service.model import Confirmation, ConfirmPayment, Payment
from payment_service.store.rows import TIME, UUID, to_confirmation
from payment_service.tables import payments

_BY_ID: Final = sa.select(payments).where(payments.c.payment_id == sa.bindparam("payment_id"))
_CLAIMS: Final = sa.select(payments).where(
    sa.or_(
        payments.c.payment_key == sa.bindparam("payment_key"),
        sa.and_(
            payments.c.user_id == sa.bindparam("user_id"),
            payments.c.request_id == sa.bindparam("request_id"),
        ),
    )
)
_after = sa.tuple_(sa.bindparam("before", type_=TIME), sa.bindparam("before_id", type_=UUID))
_NEWEST: Final = (
    sa.select(payments)
    .where(
        payments.c.user_id == sa.bindparam("user_id"),
        sa.tuple_(payments.c.create_time, payments.c.payment_id) < _after,
    )
    .order_by(payments.c.create_time.desc(), payments.c.payment_id.desc())
    .limit(sa.bindparam("size"))
)
_NEWEST_OF_ORDER: Final = _NEWEST.where(payments.c.order_id == sa.bindparam("order_id"))


async def read(connection: AsyncConnection, payment_id: str) -> Confirmation | None:
    """One payment as it was last committed."""
    row = (await connection.execute(_BY_ID, {"payment_id": payment_id})).one_or_none()
    return None if row is None else to_confirmation(row)


async def read_claims(
    connection: AsyncConnection, command: ConfirmPayment
) -> tuple[Confirmation | None, Confirmation | None]:
    """The command's own payment, and another request's with its key, as last committed."""
    rows = await connection.execute(
        _CLAIMS,
        {
            "payment_key": command.payment_key,
            "user_id": command.user_id,
            "request_id": command.request_id,
        },
    )
    same = other = None
    for row in rows:
        if (row.user_id, row.request_id) == (command.user_id, command.request_id):
            same = to_confirmation(row)
        else:
            other = to_confirmation(row)
    return same, other


async def read_newest(
    connection: AsyncConnection,
    user_id: str,
    order_id: str | None,
    *,
    before: tuple[datetime, str],
    size: int,
) -> list[Payment]:
    """At most ``size`` payments of the user that come after ``before``, newest first."""
    parameters = {
        "user_id": user_id,
        "before": before[0],
        "before_id": before[1],
        "size": size,
        **({"order_id": order_id} if order_id else {}),
    }
    statement = _NEWEST_OF_ORDER if order_id else _NEWEST
    return [to_confirmation(row).payment for row in await connection.execute(statement, parameters)]
