"""A batch's payments: locked, inserted, moved or freed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from payment_service.model import BEGINNING, Confirmation
from payment_service.store.rows import NOW, UUID, RequestId, to_confirmation, values_of
from payment_service.tables import payments

# -- places to wait ------------------------------------------------------------------------------

_place = unnest("place", place=sa.BigInteger)
_TRY_PLACES: Final = sa.select(_place.c.place, sa.func.pg_try_advisory_xact_lock(_place.c.place))
_WAIT_PLACES: Final = sa.select(_place.c.place, sa.func.pg_advisory_xact_lock(_place.c.place))


async def lock_places(
    connection: AsyncConnection, places: Collection[int], *, wait_for_locks: bool
) -> set[int]:
    """Lock the places until the transaction ends, ascending; returns those that others hold.

    A payment that is not there yet has no row to be locked: its key and its request have places.
    """
    if not places:
        return set()
    rows = await connection.execute(
        _WAIT_PLACES if wait_for_locks else _TRY_PLACES, arrays("place", place=sorted(places))
    )
    return set() if wait_for_locks else {place for place, locked in rows if not locked}


# -- payments ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Loaded:
    """The payments a batch is about, locked, and how to find them."""

    by_id: dict[str, Confirmation] = field(default_factory=dict)
    by_key: dict[str, Confirmation] = field(default_factory=dict)
    by_request: dict[RequestId, Confirmation] = field(default_factory=dict)
    held: dict[str | RequestId, str] = field(default_factory=dict)
    """Ids of payments that another transaction holds, by id, payment_key and request."""
    now: datetime = BEGINNING
    """The database's clock, read when the rows were ours."""

    def add(self, confirmation: Confirmation) -> None:
        payment = confirmation.payment
        self.by_id[payment.payment_id] = confirmation
        self.by_key[payment.payment_key] = confirmation
        self.by_request[payment.user_id, confirmation.request_id] = confirmation

    def free(self, confirmation: Confirmation) -> None:
        """A released claim is found no more, though it is still to be deleted."""
        payment = confirmation.payment
        del self.by_key[payment.payment_key]
        del self.by_request[payment.user_id, confirmation.request_id]


_key = unnest("key", payment_key=sa.Text)
_request = unnest("request", user_id=sa.Text, request_id=sa.Text)
_id = unnest("id", payment_id=UUID)
_wanted: Final = sa.union(
    sa.select(payments.c.payment_id).join_from(
        _key, payments, payments.c.payment_key == _key.c.payment_key
    ),
    sa.select(payments.c.payment_id).join_from(
        _request,
        payments,
        sa.and_(
            payments.c.user_id == _request.c.user_id,
            payments.c.request_id == _request.c.request_id,
        ),
    ),
    sa.select(_id.c.payment_id),
).cte("wanted")


def _locking(*, skip_locked: bool) -> sa.Select[Any]:
    """The wanted rows, locked in ascending order; skipped ones come back without their columns.

    The clock is read outside, when the rows are ours, and in one row even if there are none.
    """
    locked = (
        sa.select(payments)
        .where(payments.c.payment_id.in_(sa.select(_wanted.c.payment_id)))
        .order_by(payments.c.payment_id)
        .with_for_update(of=payments, key_share=True, skip_locked=skip_locked)
        .cte("locked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    found = (
        sa.select(
            payments.c.payment_id.label("found_id"),
            payments.c.payment_key.label("found_key"),
            payments.c.user_id.label("found_user"),
            payments.c.request_id.label("found_request"),
            locked,
        )
        .select_from(payments.outerjoin(locked, locked.c.payment_id == payments.c.payment_id))
        .where(payments.c.payment_id.in_(sa.select(_wanted.c.payment_id)))
        .subquery("found")
    )
    one = sa.select(sa.literal(1)).subquery("one")
    return sa.select(NOW.label("now"), found).select_from(one.outerjoin(found, sa.true()))


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)


async def load(
    connection: AsyncConnection,
    *,
    keys: Collection[str],
    requests: Collection[RequestId],
    ids: Collection[str],
    wait_for_locks: bool,
) -> Loaded:
    """Lock the payments with these keys, requests or ids; ``wait_for_locks`` waits for held ones."""
    parameters = {
        **arrays("key", payment_key=list(keys)),
        **arrays(
            "request",
            user_id=[user_id for user_id, _ in requests],
            request_id=[request_id for _, request_id in requests],
        ),
        **arrays("id", payment_id=list(ids)),
    }
    loaded = Loaded()
    for row in await connection.execute(_LOCK if wait_for_locks else _LOCK_FREE, parameters):
        loaded.now = max(loaded.now, row.now)
        if row.found_id is None:
            continue
        if row.payment_id is not None:
            loaded.add(to_confirmation(row))
        elif not wait_for_locks:
            request = (row.found_user, row.found_request)
            loaded.held |= dict.fromkeys([row.found_id, row.found_key, request], row.found_id)
    return loaded


_COLUMNS: Final = tuple(payments.c.keys())
_new = unnest("new", **{name: payments.c[name].type for name in _COLUMNS})
_ADD: Final = (
    insert(payments)
    .from_select(list(_COLUMNS), sa.select(_new).order_by(_new.c.payment_key))
    .on_conflict_do_nothing()
    .returning(payments.c.payment_id)
)

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
)
_changed = unnest(
    "changed",
    loaded_version=sa.BigInteger,
    payment_id=UUID,
    **{name: payments.c[name].type for name in _MUTABLE},
)
# The conditional update: a payment moves only from the very state it was decided on. Every change
# raises the version, so it says more than the state would.
_SAVE: Final = (
    sa.update(payments)
    .values({name: _changed.c[name] for name in _MUTABLE})
    .where(
        payments.c.payment_id == _changed.c.payment_id,
        payments.c.version == _changed.c.loaded_version,
    )
    .returning(payments.c.payment_id)
)
_freed = unnest("freed", payment_id=UUID, loaded_version=sa.BigInteger)
_FREE: Final = (
    sa.delete(payments)
    .where(
        payments.c.payment_id == _freed.c.payment_id,
        payments.c.version == _freed.c.loaded_version,
    )
    .returning(payments.c.payment_id)
)


async def add(connection: AsyncConnection, claims: Iterable[Confirmation]) -> set[str]:
    """Insert the claims; returns the ids of those whose key and request were still free."""
    rows = [values_of(claim) for claim in claims]
    if not rows:
        return set()
    added = await connection.execute(_ADD, _arrays("new", rows, _COLUMNS))
    return {row.payment_id for row in added}


async def save(connection: AsyncConnection, changed: Iterable[Confirmation]) -> set[str]:
    """Write payments that are still as loaded; returns the ids of those that were.

    Their rows are locked, so that the order of the UPDATE does not matter.
    """
    rows = [values_of(one) | {"loaded_version": one.loaded_version} for one in changed]
    if not rows:
        return set()
    names = ("loaded_version", "payment_id", *_MUTABLE)
    saved = await connection.execute(_SAVE, _arrays("changed", rows, names))
    return {row.payment_id for row in saved}


async def free(connection: AsyncConnection, released: Iterable[Confirmation]) -> set[str]:
    """Delete claims that are still as loaded; returns the ids of those that were."""
    pairs = [(one.payment.payment_id, one.loaded_version) for one in released]
    if not pairs:
        return set()
    freed = await connection.execute(
        _FREE,
        arrays(
            "freed",
            payment_id=[payment_id for payment_id, _ in pairs],
            loaded_version=[version for _, version in pairs],
        ),
    )
    return {row.payment_id for row in freed}


def _arrays(name: str, rows: Collection[dict[str, Any]], columns: Iterable[str]) -> dict[str, Any]:
    return dict(arrays(name, **{column: [row[column] for row in rows] for column in columns}))
