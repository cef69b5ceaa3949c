"""Payments as last committed, read without locks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa

from common.db.keyset import newest_first, read_readable, rows_of
from common.db.rows import from_row, one_per_key
from common.db.statements import Connection, Row
from common.db.unnest import arrays_of_tuples, same, unnest
from common.money import Money
from common.paging import Page
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import Payment, PaymentState
from payment_service.model.payment_command import ConfirmPayment
from payment_service.store.payment import readable_confirmations, to_confirmation
from payment_service.tables import payments

_wanted = unnest("wanted", payments.c.payment_id)
_BY_ID: Final = sa.select(payments).join_from(_wanted, payments, same(payments, _wanted))
_CLAIMS: Final = sa.select(payments).where(
    sa.or_(
        payments.c.payment_key == sa.bindparam("payment_key"),
        sa.and_(
            payments.c.user_id == sa.bindparam("user_id"),
            payments.c.request_id == sa.bindparam("request_id"),
        ),
    )
)
_newest = newest_first(sa.select(payments), payments.c.create_time, payments.c.payment_id)


@lru_cache
def _newest_with(columns: frozenset[str]) -> sa.Select[Any]:
    """The list of the payments with given values in these columns."""
    return _newest.where(*(payments.c[name] == sa.bindparam(name) for name in sorted(columns)))


async def find_payments(
    connection: Connection, payment_ids: Sequence[str]
) -> list[Confirmation | Exception | None]:
    """These payments as last committed, in their order."""
    parameters = arrays_of_tuples(_wanted, [(payment_id,) for payment_id in payment_ids])
    rows = await connection.execute(_BY_ID, parameters)
    return one_per_key(payment_ids, {row.payment_id: row for row in rows}, to_confirmation)


async def read_claims(
    connection: Connection, command: ConfirmPayment
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
    for found in map(to_confirmation, rows):
        if found.key == command.key:
            same = found
        else:
            other = found
    return same, other


_asked = unnest("asked", payments.c.request_id)
# By the index on request_id. Newest first: of several users' payments the oldest is read last.
_CONFIRMATIONS: Final = (
    sa.select(payments)
    .join_from(_asked, payments, same(payments, _asked))
    .order_by(payments.c.create_time.desc(), payments.c.payment_id.desc())
)


async def read_confirmations(
    connection: Connection, request_ids: Collection[str]
) -> dict[str, Payment]:
    """The payments of these confirmations as last committed, by request_id.

    One that cannot be read is UNKNOWN: it exists, and this release cannot tell what became of it.
    """
    parameters = arrays_of_tuples(_asked, [(request_id,) for request_id in request_ids])
    rows = (await connection.execute(_CONFIRMATIONS, parameters)).all()
    found = {}
    for row in rows:
        [payment] = [each.payment for each in readable_confirmations([row])] or [_unknown(row)]
        found[row.request_id] = payment
    return found


def _unknown(row: Row) -> Payment:
    """What can be said of a payment that cannot be read."""
    return from_row(
        Payment,
        row,
        amount=Money(row.currency_code, row.amount_minor),
        state=PaymentState.UNKNOWN,
        cancel_request_time=None,
    )


async def read_payments(
    connection: Connection,
    user_id: str | None,
    order_id: str | None,
    payment_key: str | None,
    page: Page,
) -> list[Payment]:
    """The page's payments that match all that is given, newest first, and one more if there is one.

    A user or a key is given: each has its index.
    """
    filters = {"user_id": user_id, "order_id": order_id, "payment_key": payment_key}
    given = {name: value for name, value in filters.items() if value is not None}
    parameters = {**given, **rows_of(page)}
    statement = _newest_with(frozenset(given))

    async def convert(rows: Sequence[Row]) -> list[Payment]:
        return [each.payment for each in readable_confirmations(rows)]

    return await read_readable(
        connection,
        statement,
        parameters,
        lambda row: {"before_time": row.create_time, "before_id": row.payment_id},
        convert,
    )
