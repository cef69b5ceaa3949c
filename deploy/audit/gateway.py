"""Payments against the gateway's own record, key by key."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from deploy.audit.look import Look
from deploy.audit.merging import Key, listed, rows, side_by_side
from deploy.audit.snapshots import Books

PAYMENTS: Final = """
SELECT payment_key COLLATE "C" AS payment_key, payment_id::text AS payment_id, order_id,
       currency_code, amount_minor, state,
       state IN ('PENDING', 'UNKNOWN') OR state = 'CONFIRMED' AND cancel_reason IS NOT NULL AS open
  FROM payments
 ORDER BY 1
"""

RECORDS: Final = """
SELECT payment_key, order_id, currency, balance_amount,
       CASE WHEN approved_at IS NULL THEN 0 ELSE total_amount END AS captured,
       (SELECT coalesce(sum(amount), 0) FROM cancels
         WHERE cancels.payment_key = payments.payment_key) AS refunded
  FROM payments
 ORDER BY payment_key
"""

_BOTH: Final = ("I7", "I3")


async def compare(books: Books, look: Look) -> None:
    """Hold every payment against the gateway's charge, and every charge against its payment."""
    captured: Counter[str] = Counter()
    refunded: Counter[str] = Counter()
    charges = payments = 0
    ours = rows(books["payment"], PAYMENTS, 1)
    theirs = listed(_records(books.gateway))
    async for (payment_key,), payment, record in side_by_side(ours, theirs):
        payments += payment is not None
        if record is not None and record["captured"]:
            charges += 1
            captured[record["currency"]] += record["captured"]
            refunded[record["currency"]] += record["refunded"]
        what = judge(payment, record)
        if what is None:
            continue
        of = f"payment {payment.payment_id} " if payment else ""
        told = f"{of}key {payment_key}: {what}"
        if payment is not None and payment.open:
            look.explained("charge", payment_key, told)
        else:
            look.differ(_BOTH, "charge", payment_key, told)
    look.figure("I7", f"{charges:,} charges at the gateway, {payments:,} payments")
    for currency in sorted(captured):
        left = captured[currency] - refunded[currency]
        look.figure(
            "I3",
            f"gateway {currency} {captured[currency]:,} captured - {refunded[currency]:,}"
            f" refunded = {left:,}",
        )


def judge(payment: Any, record: sqlite3.Row | None) -> str | None:
    """What is wrong, or under way; None if the two agree."""
    captured = 0 if record is None else int(record["captured"])
    refunded = 0 if record is None else int(record["refunded"])
    if payment is None:
        return f"{captured:,} captured, and there is no such payment" if captured else None
    if payment.open:
        return f"{payment.state}, {captured - refunded:,} at the gateway" if captured else None
    amount = payment.amount_minor
    expected = {"CONFIRMED": (amount, 0), "CANCELLED": (amount, amount)}.get(payment.state, (0, 0))
    if (captured, refunded) != expected:
        return (
            f"{payment.state} over {amount:,}, at the gateway {captured:,} captured and"
            f" {refunded:,} refunded"
        )
    if record is None or not captured:
        return None
    if record["balance_amount"] != captured - refunded:
        return f"the gateway tells {record['balance_amount']:,} of {captured - refunded:,} left"
    pairs = ((payment.currency_code, record["currency"]), (payment.order_id, record["order_id"]))
    differing = [f"{theirs} and not {own}" for own, theirs in pairs if own != theirs]
    return f"at the gateway for {', '.join(differing)}" if differing else None


def _records(gateway: sqlite3.Connection) -> Iterator[tuple[Key, sqlite3.Row]]:
    for row in gateway.execute(RECORDS):
        yield (row["payment_key"],), row
