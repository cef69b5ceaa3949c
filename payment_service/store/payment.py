"""Payments: locked, written and read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from common.db.row_locks import CLOCK, locked
from common.db.rows import UNREADABLE, from_row, readable
from common.db.statements import Connection, Row
from common.db.unnest import arrays, insert_from, looked_up, same, unnest
from common.db.writes import Statement, Write
from common.identity.origin import stored_origin
from common.metrics import from_zero
from common.money import Money
from common.request_key import RequestKey
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import BEGINNING, Payment, PaymentState
from payment_service.model.payment_command import (
    BeginConfirm,
    CancelPayment,
    Command,
    ConfirmPayment,
    RecordOutcome,
    ResolvePayment,
    confirm_key,
)
from payment_service.tables import payments

# -- rows and the model --------------------------------------------------------------------------

from_zero(UNREADABLE, ["payment"])
_OF_PAYMENT: Final = [each.name for each in fields(Payment) if each.name in payments.c]
_OF_WORK: Final = [each.name for each in fields(Confirmation) if each.name in payments.c]


def readable_confirmations(rows: Iterable[Row]) -> list[Confirmation]:
    """The payments of these rows, without those that this release cannot read (``readable``)."""
    return readable("payment", rows, to_confirmation)


def to_confirmation(row: Row) -> Confirmation:
    payment = from_row(
        Payment,
        row,
        amount=Money(row.currency_code, row.amount_minor),
        state=PaymentState(row.state),
        cancel_request_time=_cancel_request_time(row),
    )
    return from_row(Confirmation, row, payment=payment, origin=stored_origin(row.origin))


def _cancel_request_time(row: Row) -> datetime | None:
    """Of a cancellation that the earlier release stored, without its time: the last change."""
    stored: datetime | None = row.cancel_request_time
    changed: datetime = row.update_time
    return changed if stored is None and row.cancel_reason is not None else stored


def _to_row(confirmation: Confirmation) -> dict[str, object]:
    payment = confirmation.payment
    return {
        "currency_code": payment.amount.currency_code,
        "amount_minor": payment.amount.amount_minor,
        **{name: getattr(payment, name) for name in _OF_PAYMENT},
        **{name: getattr(confirmation, name) for name in _OF_WORK},
        "loaded_version": confirmation.loaded_version,
    }


# -- locks ---------------------------------------------------------------------------------------

_advisory = unnest("advisory", key=sa.BigInteger)
_TRY_ADVISORY: Final = sa.select(
    _advisory.c.key, sa.func.pg_try_advisory_xact_lock(_advisory.c.key)
)
_WAIT_ADVISORY: Final = sa.select(_advisory.c.key, sa.func.pg_advisory_xact_lock(_advisory.c.key))


async def lock_advisory(
    connection: Connection, keys: Collection[int], *, wait_for_locks: bool
) -> frozenset[int]:
    """Take the advisory locks until the transaction ends, ascending.

    Returns those that another transaction has; with ``wait_for_locks`` none.
    """
    if not keys:
        return frozenset()
    parameters = arrays(_advisory, [{"key": key} for key in sorted(keys)])
    if wait_for_locks:
        await connection.execute(_WAIT_ADVISORY, parameters)
        return frozenset()
    rows = await connection.execute(_TRY_ADVISORY, parameters)
    return frozenset(key for key, taken in rows if not taken)


@dataclass(slots=True)
class LoadedPayments:
    """The payments that a batch concerns, locked, by id, payment_key and request."""

    by_id: dict[str, Confirmation] = field(default_factory=dict)
    by_key: dict[str, Confirmation] = field(default_factory=dict)
    by_request: dict[RequestKey, Confirmation] = field(default_factory=dict)
    blocked: dict[str | RequestKey, str] = field(default_factory=dict)
    """Ids of payments that another transaction has locked, by id, payment_key and request."""
    now: datetime = BEGINNING
    """The database's clock, read after the rows were locked."""

    def add(self, confirmation: Confirmation) -> None:
        self.by_id[confirmation.payment.payment_id] = confirmation
        self.by_key[confirmation.payment.payment_key] = confirmation
        self.by_request[confirmation.key] = confirmation

    def release(self, confirmation: Confirmation) -> None:
        """Free the key and the request of a claim that is going to be deleted."""
        del self.by_key[confirmation.payment.payment_key]
        del self.by_request[confirmation.key]


_key = unnest("key", payments.c.payment_key)
_request = unnest("request", scope=sa.Text, request_id=sa.Text)
_id = unnest("id", payments.c.payment_id)
# As text: for a union of the column itself, all payments could be read, in the order of their ids.
_text_id = sa.cast(payments.c.payment_id, sa.Text).label("payment_id")
_wanted: Final = sa.union(
    sa.select(_text_id).join_from(_key, payments, same(payments, _key)),
    sa.select(_text_id).join_from(
        _request,
        payments,
        sa.and_(
            looked_up(payments.c.user_id, _request.c.scope),
            looked_up(payments.c.request_id, _request.c.request_id),
        ),
    ),
    sa.select(sa.cast(_id.c.payment_id, sa.Text)),
).cte("wanted")


def _lock(*, skip_locked: bool) -> sa.Select[Any]:
    """The wanted rows, locked ascending. A row that was skipped has its identity only.

    The clock is read outside the CTE, when the rows are locked, and in one row if none is found.
    """
    payment_id = payments.c.payment_id
    wanted = looked_up(payment_id, sa.cast(_wanted.c.payment_id, payment_id.type))
    cte = locked(
        payments,
        sa.select(payments).join_from(_wanted, payments, wanted),
        order_by=[_wanted.c.payment_id.collate("C")],
        skip_locked=skip_locked,
    )
    identity = [
        payments.c[name].label(f"found_{name}")
        for name in ("payment_id", "payment_key", "user_id", "request_id")
    ]
    found = (
        sa.select(*identity, cte)
        .select_from(_wanted.join(payments, wanted))
        # Not by equality: all payments could be read, in the order of their ids, to be merged.
        .outerjoin(cte, cte.c.payment_id.is_not_distinct_from(payment_id))
        .subquery("found")
    )
    one = sa.select(sa.literal(1)).subquery("one")
    return sa.select(CLOCK.label("now"), found).select_from(one.outerjoin(found, sa.true()))


_LOCK: Final = _lock(skip_locked=False)
_LOCK_FREE: Final = _lock(skip_locked=True)


async def load(
    connection: Connection, commands: Sequence[Command], *, wait_for_locks: bool
) -> LoadedPayments:
    """Lock the payments that the commands concern."""
    by_id: list[BeginConfirm | RecordOutcome | ResolvePayment] = []
    requests: list[ConfirmPayment | CancelPayment] = []
    for command in commands:
        if isinstance(command, ConfirmPayment | CancelPayment):
            requests.append(command)
        else:
            by_id.append(command)
    parameters = {
        **arrays(_key, [claim for claim in requests if isinstance(claim, ConfirmPayment)]),
        **arrays(_request, [request.confirm_key for request in requests]),
        **arrays(_id, by_id),
    }
    loaded = LoadedPayments()
    for row in await connection.execute(_LOCK if wait_for_locks else _LOCK_FREE, parameters):
        loaded.now = max(loaded.now, row.now)
        if row.found_payment_id is None:
            continue
        if row.payment_id is not None:
            loaded.add(to_confirmation(row))
        elif not wait_for_locks:
            request = confirm_key(row.found_user_id, row.found_request_id)
            for name in (row.found_payment_id, row.found_payment_key, request):
                loaded.blocked[name] = row.found_payment_id
    return loaded


# -- writes --------------------------------------------------------------------------------------

_new = unnest("new", *payments.c)
_ADD: Final = insert_from(payments, _new, ["payment_key"]).on_conflict_do_nothing()

_MUTABLE: Final = (
    "state",
    "gateway_transaction_id",
    "failure_code",
    "cancel_reason",
    "cancel_request_id",
    "holder",
    "due_time",
    "tries",
    "version",
    "update_time",
    "refunded_minor",
    "refunded_outside_minor",
    "cancel_request_time",
    "refund_refusal_code",
    "resolution_reason",
    "unsupported_status",
    "confirm_time",
    "check_time",
)
_changed = unnest("changed", *payments.c[("payment_id", *_MUTABLE)], loaded_version=sa.BigInteger)
# The conditional update. Every change raises the version, so it says more than the state would.
# The rows are locked, so the order of the UPDATE does not matter.
_SAVE: Final = (
    sa.update(payments)
    .values({name: _changed.c[name] for name in _MUTABLE})
    .where(
        same(payments, _changed, ["payment_id"]),
        payments.c.version == _changed.c.loaded_version,
    )
)
_freed = unnest("freed", payments.c.payment_id, loaded_version=sa.BigInteger)
_DELETE: Final = sa.delete(payments).where(
    same(payments, _freed, ["payment_id"]), payments.c.version == _freed.c.loaded_version
)


def releasing(changed: Iterable[Confirmation]) -> list[Write]:
    """The write that deletes the claims that a batch gave up, each still as loaded."""
    return _writing(_DELETE, _freed, [each for each in changed if each.released])


def saving(changed: Iterable[Confirmation]) -> list[Write]:
    """The write of the rows that a batch changed otherwise, each still as loaded."""
    kept = [each for each in changed if not each.new and not each.released]
    return _writing(_SAVE, _changed, kept)


def adding(changed: Iterable[Confirmation]) -> list[Write]:
    """The write of new claims, each if its key and its request are still free."""
    return _writing(_ADD, _new, [each for each in changed if each.new])


def _writing(
    statement: Statement, source: sa.TableValuedAlias, confirmations: Sequence[Confirmation]
) -> list[Write]:
    rows = [_to_row(confirmation) for confirmation in confirmations]
    return [Write(statement, arrays(source, rows), len(rows))] if rows else []
