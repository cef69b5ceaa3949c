"""Payments compared with the gateway's record, by payment key."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import sqlalchemy as sa

from deploy.audit.audit_pass import AuditPass
from deploy.audit.merge_join import Key, merge_join, stream
from deploy.audit.snapshots import Books

PAYMENTS: Final = """
SELECT payment_key COLLATE "C" AS payment_key, payment_id::text AS payment_id, order_id,
       currency_code, amount_minor, state, gateway_transaction_id,
       state IN ('PENDING', 'UNKNOWN') OR state = 'CONFIRMED' AND cancel_reason IS NOT NULL AS open
  FROM payments
 ORDER BY 1
"""

RECORDS: Final = """
SELECT payment_key, order_id, currency, balance_amount,
       CASE WHEN approved_at IS NULL THEN 0 ELSE total_amount END AS captured,
       (SELECT coalesce(sum(amount), 0) FROM cancels
         WHERE cancels.payment_key = payments.payment_key) AS refunded,
       transaction_key
  FROM payments
 ORDER BY payment_key
"""


async def compare(books: Books, found: AuditPass) -> None:
    """Compare every payment with the gateway's charge, and every charge with its payment."""
    captured: Counter[str] = Counter()
    refunded: Counter[str] = Counter()
    charges = payments = 0
    pairs = merge_join(stream(books["payment"], PAYMENTS, 1), _records(books.gateway))
    async for (payment_key,), payment, record in pairs:
        payments += payment is not None
        if record is not None and record["captured"]:
            charges += 1
            captured[record["currency"]] += record["captured"]
            refunded[record["currency"]] += record["refunded"]
        difference = difference_of(payment, record)
        if difference is None:
            continue
        subject = f"payment {payment.payment_id} " if payment else ""
        text = f"{subject}key {payment_key}: {difference}"
        if payment is not None and payment.open:
            found.add_in_flight("charge", payment_key, text)
        else:
            found.add_difference(("I7", "I3"), "charge", payment_key, text)
    found.add_figure("I7", f"{charges:,} charges at the gateway, {payments:,} payments")
    for currency in sorted(captured):
        left = captured[currency] - refunded[currency]
        found.add_figure(
            "I3",
            f"gateway {currency} {captured[currency]:,} captured - {refunded[currency]:,}"
            f" refunded = {left:,}",
        )


def difference_of(payment: sa.Row[Any] | None, record: sqlite3.Row | None) -> str | None:
    """How a payment and the gateway's record differ; None if they agree."""
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
        left = captured - refunded
        return f"the gateway's balance is {record['balance_amount']:,}, and {left:,} are left"
    pairs = ((payment.currency_code, record["currency"]), (payment.order_id, record["order_id"]))
    # A refund replaces the transaction that the gateway names.
    if not refunded and payment.gateway_transaction_id != record["transaction_key"]:
        return (
            f"transaction {payment.gateway_transaction_id}, at the gateway"
            f" {record['transaction_key']}"
        )
    differing = [f"{gateway} and not {own}" for own, gateway in pairs if own != gateway]
    return f"at the gateway for {', '.join(differing)}" if differing else None


async def _records(gateway: sqlite3.Connection) -> AsyncIterator[tuple[Key, sqlite3.Row]]:
    for row in gateway.execute(RECORDS):
        yield (row["payment_key"],), row
