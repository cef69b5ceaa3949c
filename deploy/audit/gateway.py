"""Payments compared with the gateway's record, by payment key; and what captures are for."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from deploy.audit.audit_pass import AuditPass, Note
from deploy.audit.checks import moving
from deploy.audit.merge_join import Key, merge_join, stream
from deploy.audit.sagas import Use, Uses
from deploy.audit.snapshots import Books

# A payment that an earlier release cancelled has no sum of refunds.
PAYMENTS: Final = f"""
SELECT payment_key COLLATE "C" AS payment_key, payment_id::text AS payment_id, order_id,
       currency_code, amount_minor, state, gateway_transaction_id,
       CASE state WHEN 'CANCELLED' THEN amount_minor ELSE refunded_minor END AS refunded_minor,
       refunded_outside_minor AS outside_minor, cancel_reason IS NOT NULL AS cancelled,
       due_time IS NOT NULL AS open, due_time IS NOT NULL AND {moving("due_time")} AS moving
  FROM payments
 CROSS JOIN heartbeat AS h
 ORDER BY 1
"""  # noqa: S608 - constants

# The gateway stored its reply to the confirmation, which names the transaction that a refund
# replaces in the payment.
RECORDS: Final = """
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
 GROUP BY p.payment_key, a.transaction_key
 ORDER BY p.payment_key
"""


@dataclass(slots=True)
class _Sums:
    """Sums in minor units, by currency."""

    captured: Counter[str] = field(default_factory=Counter)
    refunded: Counter[str] = field(default_factory=Counter)
    """By the gateway, and by other means."""
    outside: Counter[str] = field(default_factory=Counter)
    """Of it, what was given back outside Tally."""
    unknown: Counter[str] = field(default_factory=Counter)
    """What the gateway has for payments whose outcome payment_service does not know yet."""
    ahead: Counter[str] = field(default_factory=Counter)
    """What the gateway has given back of payments that are still to be refunded."""


async def compare(books: Books, found: AuditPass, uses: Uses, *, overdue_s: float) -> None:
    """Compare every payment with the gateway's charge, and every charge with its payment.

    ``uses``: what the captured amounts are for, as ``sagas.compare`` returns it.
    """
    sums = _Sums()
    charges = payments = 0
    known = stream(books["payment"], PAYMENTS, 1, overdue_s=overdue_s)
    async for (payment_key,), payment, record in merge_join(known, _records(books.gateway)):
        payments += payment is not None
        charges += record is not None and record["captured"] > 0
        _add(sums, payment, record)
        difference = difference_of(payment, record)
        subject = f"payment {payment.payment_id} " if payment else ""
        if difference is not None:
            text = f"{subject}key {payment_key}: {difference}"
            found.add_difference(("I7", "I3"), "charge", payment_key, text)
        elif payment is not None and payment.open and record is not None and record["captured"]:
            left = record["captured"] - record["refunded"]
            note = Note.GIVING_BACK if payment.cancelled else Note.UNDER_WAY
            text = f"{subject}key {payment_key}: {payment.state}, {left:,} at the gateway"
            found.add_note(note, text)
    found.add_figure("I7", f"{charges:,} charges at the gateway, {payments:,} payments")
    _compare_sums(found, sums, uses)


def _add(sums: _Sums, payment: sa.Row[Any] | None, record: sqlite3.Row | None) -> None:
    captured = 0 if record is None else int(record["captured"])
    refunded = 0 if record is None else int(record["refunded"])
    if record is not None:
        sums.captured[record["currency"]] += captured
        sums.refunded[record["currency"]] += refunded
    if payment is None:
        return
    currency = payment.currency_code
    sums.outside[currency] += payment.outside_minor
    if payment.state in {"PENDING", "UNKNOWN"}:
        sums.unknown[currency] += captured - refunded
        return
    # Given back by other means, such as cash: the gateway does not know of it.
    known = payment.outside_minor if payment.open else payment.refunded_minor
    given_back = max(refunded, known)
    sums.refunded[currency] += given_back - refunded
    if payment.open:
        sums.ahead[currency] += given_back - payment.refunded_minor


def _compare_sums(found: AuditPass, sums: _Sums, uses: Uses) -> None:
    """Print what the captured amounts are for, by currency; a difference if they do not add up."""
    for currency in sorted(sums.captured | {code: 1 for _, code in uses}):
        left = sums.captured[currency] - sums.refunded[currency]
        parts = {str(use): uses[use, currency] for use in Use}
        # It is counted with the refunds, whatever the payment was for.
        parts[str(Use.PAID)] += parts.pop(str(Use.OUTSIDE))
        parts[str(Use.UNDER_WAY)] += sums.unknown[currency]
        parts[str(Use.GIVING_BACK)] -= sums.ahead[currency]
        total = sum(parts.values())
        shown = [f"{amount:,} {name}" for name, amount in parts.items() if amount] or ["0"]
        outside = sums.outside[currency]
        refunds = f"{sums.refunded[currency] - outside:,} refunded"
        if outside:
            refunds += f" - {outside:,} refunded outside Tally"
        figure = (
            f"gateway {currency} {sums.captured[currency]:,} captured - {refunds} ="
            f" {' + '.join(shown).replace('+ -', '- ')}"
        )
        found.add_figure("I3", figure)
        # Under load the sums differ as long as single rows do.
        if left != total and not found.unsettled:
            text = f"{figure}: {left:,} on the left, {total:,} on the right"
            found.add_difference(("I3",), "sums of captures", currency, text)


def difference_of(payment: sa.Row[Any] | None, record: sqlite3.Row | None) -> str | None:
    """How a payment and the gateway's record differ; None if they agree, or if work that moves
    explains it."""
    captured = 0 if record is None else int(record["captured"])
    refunded = 0 if record is None else int(record["refunded"])
    if payment is None:
        return f"{captured:,} captured, and there is no such payment" if captured else None
    amount = payment.amount_minor
    if payment.open:
        if not captured:
            return None
        if not payment.moving:
            return f"{payment.state}, {captured - refunded:,} at the gateway, and nothing moves"
        if captured != amount:
            return f"{payment.state} over {amount:,}, at the gateway {captured:,} captured"
        return None if record is None else _of_another(payment, record)
    charged = payment.state in {"CONFIRMED", "CANCELLED"}
    by_tally = payment.refunded_minor - payment.outside_minor
    if captured != (amount if charged else 0) or not by_tally <= refunded <= payment.refunded_minor:
        return (
            f"{payment.state} over {amount:,} with {payment.refunded_minor:,} refunded"
            f" ({payment.outside_minor:,} of it outside Tally), at the gateway {captured:,}"
            f" captured and {refunded:,} refunded"
        )
    if record is not None and record["by_call"] > by_tally:
        # Given back twice, perhaps: by Tally's call, and by a person who recorded another refund.
        return f"{record['by_call']:,} refunded by Tally's calls, and {by_tally:,} are recorded"
    return None if record is None or not captured else _differing(payment, record)


def _differing(payment: sa.Row[Any], record: sqlite3.Row) -> str | None:
    """What else of a charge is not as in its payment."""
    left = int(record["captured"]) - int(record["refunded"])
    if record["balance_amount"] != left:
        return f"the gateway's balance is {record['balance_amount']:,}, and {left:,} are left"
    if (wrong := _wrong_transaction(payment.gateway_transaction_id, record)) is not None:
        return wrong
    return _of_another(payment, record)


def _of_another(payment: sa.Row[Any], record: sqlite3.Row) -> str | None:
    """Whether a charge is in another currency than its payment, or for another order."""
    pairs = ((payment.currency_code, record["currency"]), (payment.order_id, record["order_id"]))
    differing = [f"{gateway} and not {own}" for own, gateway in pairs if own != gateway]
    return f"at the gateway for {', '.join(differing)}" if differing else None


def _wrong_transaction(own: str | None, record: sqlite3.Row) -> str | None:
    """Whether the transactions that the payment and the gateway name are of this charge."""
    named, approval, refunds = record["transaction_key"], record["approval"], record["refunds"]
    # A refund replaces the transaction that the gateway names, by its own.
    last = set(refunds.split()) or {approval or named}
    if named not in last:
        return f"the gateway names transaction {named} and not {', '.join(sorted(last))}"
    if approval is None and refunds:
        return None  # the gateway does not know the first one any more
    # A charge that was found only after its refund has the refund's transaction.
    if own not in last | {approval}:
        return f"transaction {own}, at the gateway {approval or named}"
    return None


async def _records(gateway: sqlite3.Connection) -> AsyncIterator[tuple[Key, sqlite3.Row]]:
    for row in gateway.execute(RECORDS):
        yield (row["payment_key"],), row
