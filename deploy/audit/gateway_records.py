"""What the gateway has of a payment key, and the simulator's record of it, a SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.audit.merge_join import Key


@dataclass(frozen=True, slots=True)
class ChargeRecord:
    """One payment key at the gateway; amounts in minor units."""

    payment_key: str
    order_id: str
    currency: str
    balance_amount: int
    """What is left, as the gateway has it."""
    captured: int
    refunded: int
    by_call: int | None
    """Of ``refunded``, what calls of Tally gave back; None if the gateway does not say."""
    transaction_key: str
    """The transaction that the gateway names, the last one."""
    refunds: frozenset[str]
    """The transactions of the refunds."""
    approval: str | None
    """The transaction of the capture; None if the gateway does not know it any more."""


def _records(condition: str) -> str:
    """SQL: the records of the payments for which this holds, by key."""
    # The gateway stored its reply to the confirmation, which names the transaction that a refund
    # replaces in the payment.
    return f"""
WITH approvals AS MATERIALIZED (
     SELECT json_extract(body, '$.paymentKey') AS payment_key,
            max(json_extract(body, '$.lastTransactionKey')) AS transaction_key
       FROM answers
      WHERE address = 'POST /v1/payments/confirm' AND http_status = 200
      GROUP BY 1)
SELECT p.payment_key, p.order_id, p.currency, p.balance_amount, p.transaction_key,
       CASE WHEN p.approved_at IS NULL THEN 0 ELSE p.total_amount END AS captured,
       coalesce(sum(c.amount), 0) AS refunded,
       coalesce(sum(CASE WHEN d.transaction_key IS NULL THEN c.amount END), 0) AS by_call,
       coalesce(group_concat(c.transaction_key, ' '), '') AS refunds,
       a.transaction_key AS approval
  FROM payments AS p
  LEFT JOIN cancels AS c ON c.payment_key = p.payment_key
  LEFT JOIN dashboard_cancels AS d ON d.transaction_key = c.transaction_key
  LEFT JOIN approvals AS a ON a.payment_key = p.payment_key
 WHERE {condition}
 GROUP BY p.payment_key, a.transaction_key
 ORDER BY p.payment_key
"""  # noqa: S608 - constants


RECORDS: Final = _records("true")
_OF_KEYS: Final = _records("p.payment_key IN (SELECT value FROM json_each(:keys))")


async def all_records(gateway: sqlite3.Connection) -> AsyncIterator[tuple[Key, ChargeRecord]]:
    """Every record, in the order of the keys."""
    for record in _read(gateway.execute(RECORDS)):
        yield (record.payment_key,), record


def records_of(gateway: sqlite3.Connection, keys: Sequence[str]) -> dict[str, ChargeRecord]:
    """The records of these payment keys, where there are any."""
    rows = gateway.execute(_OF_KEYS, {"keys": json.dumps(list(keys))})
    return {record.payment_key: record for record in _read(rows)}


def _read(rows: sqlite3.Cursor) -> Iterator[ChargeRecord]:
    for row in rows:
        yield ChargeRecord(
            payment_key=row["payment_key"],
            order_id=row["order_id"],
            currency=row["currency"],
            balance_amount=row["balance_amount"],
            captured=row["captured"],
            refunded=row["refunded"],
            by_call=row["by_call"],
            transaction_key=row["transaction_key"],
            refunds=frozenset(row["refunds"].split()),
            approval=row["approval"],
        )
