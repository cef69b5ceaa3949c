"""Payments compared with the gateway's side, by payment key; and what captures are for."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from deploy.audit.audit_pass import AuditPass, Note
from deploy.audit.checks import moving
from deploy.audit.gateway_api import GatewayAddress
from deploy.audit.gateway_records import ChargeRecord, all_records, records_of
from deploy.audit.merge_join import merge_join, stream
from deploy.audit.parts import Part, parts
from deploy.audit.sagas import Use, Uses
from deploy.audit.snapshots import Books
from deploy.audit.touched import Touched

LOOKED_UP_MAX: Final = 500
"""Payments in memory while they are looked up by their keys."""

# A payment that an earlier release cancelled has no sum of refunds.
_PAYMENTS: Final = f"""
SELECT payment_key COLLATE "C" AS payment_key, payment_id::text AS payment_id, order_id,
       currency_code, amount_minor, state, gateway_transaction_id,
       CASE state WHEN 'CANCELLED' THEN amount_minor ELSE refunded_minor END AS refunded_minor,
       refunded_outside_minor AS outside_minor, cancel_reason IS NOT NULL AS cancelled,
       due_time IS NOT NULL AS open, due_time IS NOT NULL AND {moving("due_time")} AS moving
  FROM payments
 CROSS JOIN heartbeat AS h
"""  # noqa: S608 - constants
PAYMENTS: Final = f"{_PAYMENTS} ORDER BY 1"
CHANGED_PAYMENTS: Final = (
    f"{_PAYMENTS} WHERE update_time >= :asked_since OR due_time IS NOT NULL ORDER BY 1"
)
"""Those that changed since then, or are open."""


class Payment(NamedTuple):
    """The columns of these statements."""

    payment_key: str
    payment_id: str
    order_id: str | None
    currency_code: str
    amount_minor: int
    state: str
    gateway_transaction_id: str | None
    refunded_minor: int
    outside_minor: int
    cancelled: bool
    open: bool
    moving: bool


Pairs = AsyncIterator[tuple[str, Payment | None, ChargeRecord | None]]
"""A payment key, with its payment and the gateway's record of it, where they exist."""


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


@dataclass(slots=True)
class Comparison:
    """What is added up while payments are compared."""

    sums: _Sums = field(default_factory=_Sums)
    charges: int = 0
    payments: int = 0


async def compare(
    books: Books,
    found: AuditPass,
    uses: Uses,
    *,
    overdue_s: float,
    touched: Touched | None = None,
) -> None:
    """Compare every payment with the gateway's charge, and every charge with its payment.

    ``uses``: what the captured amounts are for, as ``sagas.compare`` returns it. ``touched``:
    only payments of users who were touched; what is not compared is recorded. Of the gateway's API
    nothing is asked here (``gateway_look_ups``).
    """
    if isinstance(books.gateway, GatewayAddress):
        return
    if books.gateway is None:
        found.gateway_left_out = True
        found.leave_out("the gateway's side: neither its record nor its API is known")
        return
    known = Comparison()
    for part in parts("payment", touched):
        await compare_pairs(_recorded(books, books.gateway, part, overdue_s), found, known)
    if touched is not None:
        found.leave_out("charges at the gateway that no payment has: only a full audit sees them")
    found.add_figure("I7", f"{known.charges:,} charges at the gateway, {known.payments:,} payments")
    _compare_sums(found, known.sums, uses)


async def _recorded(
    books: Books, gateway: sqlite3.Connection, part: Part, overdue_s: float
) -> Pairs:
    """The payments of a part, and of the whole also the records without a payment."""
    payments = stream(books["payment"], part.of("payment", PAYMENTS), 1, overdue_s=overdue_s)
    if part.users is None:
        async for (key,), row, record in merge_join(payments, all_records(gateway)):
            yield key, None if row is None else Payment._make(row), record
        return
    async for some in _chunks(payments):
        records = records_of(gateway, [*some])
        for key, row in some.items():
            yield key, Payment._make(row), records.get(key)


async def _chunks(
    payments: AsyncIterator[tuple[tuple[str, ...], sa.Row[Any]]],
) -> AsyncIterator[dict[str, sa.Row[Any]]]:
    some: dict[str, sa.Row[Any]] = {}
    async for (key,), row in payments:
        some[key] = row
        if len(some) == LOOKED_UP_MAX:
            yield some
            some = {}
    if some:
        yield some


async def compare_pairs(pairs: Pairs, found: AuditPass, known: Comparison) -> None:
    async for payment_key, payment, record in pairs:
        known.payments += payment is not None
        known.charges += record is not None and record.captured > 0
        _add(known.sums, payment, record)
        difference = difference_of(payment, record)
        subject = f"payment {payment.payment_id} " if payment else ""
        if difference is not None:
            text = f"{subject}key {payment_key}: {difference}"
            found.add_difference(("I7", "I3"), "charge", payment_key, text)
        elif payment is not None and payment.open and record is not None and record.captured:
            left = record.captured - record.refunded
            note = Note.GIVING_BACK if payment.cancelled else Note.UNDER_WAY
            text = f"{subject}key {payment_key}: {payment.state}, {left:,} at the gateway"
            found.add_note(note, text)


def _add(sums: _Sums, payment: Payment | None, record: ChargeRecord | None) -> None:
    captured = 0 if record is None else record.captured
    refunded = 0 if record is None else record.refunded
    if record is not None:
        sums.captured[record.currency] += captured
        sums.refunded[record.currency] += refunded
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


def difference_of(payment: Payment | None, record: ChargeRecord | None) -> str | None:
    """How a payment and the gateway's record differ; None if they agree, or if work that moves
    explains it."""
    captured = 0 if record is None else record.captured
    refunded = 0 if record is None else record.refunded
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
    if record is not None and record.by_call is not None and record.by_call > by_tally:
        # Given back twice, perhaps: by Tally's call, and by a person who recorded another refund.
        return f"{record.by_call:,} refunded by Tally's calls, and {by_tally:,} are recorded"
    return None if record is None or not captured else _differing(payment, record)


def _differing(payment: Payment, record: ChargeRecord) -> str | None:
    """What else of a charge is not as in its payment."""
    left = record.captured - record.refunded
    if record.balance_amount != left:
        return f"the gateway's balance is {record.balance_amount:,}, and {left:,} are left"
    if (wrong := _wrong_transaction(payment.gateway_transaction_id, record)) is not None:
        return wrong
    return _of_another(payment, record)


def _of_another(payment: Payment, record: ChargeRecord) -> str | None:
    """Whether a charge is in another currency than its payment, or for another order."""
    pairs = ((payment.currency_code, record.currency), (payment.order_id, record.order_id))
    differing = [f"{gateway} and not {own}" for own, gateway in pairs if own != gateway]
    return f"at the gateway for {', '.join(differing)}" if differing else None


def _wrong_transaction(own: str | None, record: ChargeRecord) -> str | None:
    """Whether the transactions that the payment and the gateway name are of this charge."""
    named, approval = record.transaction_key, record.approval
    # A refund replaces the transaction that the gateway names, by its own.
    last = record.refunds or {approval or named}
    if named not in last:
        return f"the gateway names transaction {named} and not {', '.join(sorted(last))}"
    if approval is None and record.refunds:
        return None  # the gateway does not know the first one any more
    # A charge that was found only after its refund has the refund's transaction.
    if own not in last | {approval}:
        return f"transaction {own}, at the gateway {approval or named}"
    return None
