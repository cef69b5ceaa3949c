"""Accounts and ledger entries: their rows, and the events that they tell of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deploy.why.event import Event, money, short
from deploy.why.selection import Records, Selection, newest_of, rows

SERVICE: Final = "balance"

_ACCOUNTS: Final = sa.text("""
SELECT user_id, currency_code, available_minor, version, update_time
  FROM accounts WHERE user_id = :user_id ORDER BY currency_code
""")
_ENTRIES: Final = sa.text("""
SELECT entry_id::text AS entry_id, user_id, currency_code, sequence, kind, amount_minor,
       balance_after_minor, request_id, order_id, refund_of, create_time
  FROM ledger_entries
 WHERE user_id = :user_id
   AND (order_id = ANY (CAST(:order_ids AS text[]))
        OR request_id = ANY (CAST(:request_ids AS text[]))
        OR refund_of = ANY (CAST(:request_ids AS text[])))
 ORDER BY create_time, sequence
""")
# The newest of each account by its key, so that a long ledger is not sorted.
_NEWEST: Final = sa.text("""
SELECT e.* FROM accounts AS a
 CROSS JOIN LATERAL (
       SELECT entry_id::text AS entry_id, user_id, currency_code, sequence, kind, amount_minor,
              balance_after_minor, request_id, order_id, refund_of, create_time
         FROM ledger_entries AS l
        WHERE l.user_id = a.user_id AND l.currency_code = a.currency_code
        ORDER BY l.sequence DESC LIMIT :size) AS e
 WHERE a.user_id = :user_id ORDER BY e.create_time DESC, e.sequence DESC LIMIT :size
""")
_DONE: Final = {"CHARGE": "charged", "DEDUCT": "deducted", "REFUND": "refunded"}


async def read(connection: AsyncConnection, selection: Selection, records: Records) -> None:
    """Add the selection's ledger entries, and its user's accounts."""
    user_id = selection.user_id
    records.accounts += await rows(connection, _ACCOUNTS, user_id=user_id)
    if selection.newest:
        found = await rows(connection, _NEWEST, user_id=user_id, size=selection.newest + 1)
        records.entries += newest_of(records, "ledger entries", found, selection.newest)
        return
    records.entries += await rows(
        connection,
        _ENTRIES,
        user_id=user_id,
        order_ids=list(selection.order_ids),
        request_ids=list(selection.request_ids),
    )


def events(records: Records) -> Iterator[Event]:
    """What the ledger tells of."""
    for entry in records.entries:
        after, amount = entry["balance_after_minor"], entry["amount_minor"]
        of_order = f", order {short(entry['order_id'])}" if entry["order_id"] else ""
        # The request_id of a saga's step is long, and its order says more.
        by = of_order or f", {entry['request_id']}"
        names = ("entry_id", "order_id", "request_id", "refund_of")
        yield Event(
            entry["create_time"],
            SERVICE,
            f"{_DONE.get(entry['kind'], entry['kind'])}{by}",
            money(amount, entry["currency_code"]),
            f"{after - amount:,} → {after:,}",
            {name: entry[name] for name in names if entry[name]},
        )
