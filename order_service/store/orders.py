"""Orders and their lines in SQL: what a batch locks and writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from order_service.model.orders import Item, Order, State
from order_service.tables import order_items, orders

_UUID: Final = sa.UUID(as_uuid=False)
_TIME: Final = sa.DateTime(timezone=True)


@dataclass(slots=True)
class LoadedOrders:
    """The orders a batch is about; those that do not exist are in neither."""

    orders: dict[str, Order] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Orders that exist but are locked by another transaction."""
    now: datetime | None = None
    """The database's clock, read when the rows were ours; None if no row was found."""


_wanted = unnest("wanted", order_id=_UUID)


def _locking(*, skip_locked: bool) -> sa.Select[Any]:
    """The wanted rows, locked in ascending order: a sort comes before its FOR UPDATE.

    FOR NO KEY UPDATE is the row lock that an UPDATE takes. The clock is read outside, when the row
    is ours: the SELECT list of the locking query is computed before the wait.
    """
    locked = (
        sa.select(orders)
        .join_from(_wanted, orders, orders.c.order_id == _wanted.c.order_id)
        .order_by(orders.c.order_id)
        .with_for_update(of=orders, key_share=True, skip_locked=skip_locked)
        .cte("locked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return sa.select(locked, sa.func.clock_timestamp(type_=_TIME).label("now"))


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)
_KNOWN: Final = sa.select(orders.c.order_id).join_from(
    _wanted, orders, orders.c.order_id == _wanted.c.order_id
)
_ITEMS: Final = sa.select(order_items).join_from(
    _wanted, order_items, order_items.c.order_id == _wanted.c.order_id
)

_changed = unnest(
    "changed",
    order_id=_UUID,
    loaded_version=sa.BigInteger,
    loaded_state=sa.Text,
    discount_minor=sa.BigInteger,
    paid_by_balance_minor=sa.BigInteger,
    paid_by_gateway_minor=sa.BigInteger,
    coupon_id=sa.Text,
    payment_id=sa.Text,
    state=sa.Text,
    failure_reason=sa.Text,
    version=sa.BigInteger,
    update_time=_TIME,
)
# State and version are compared although the rows are locked: should a lock ever fail to be taken,
# the move that came second fails rather than overruling the first.
_SAVE: Final = (
    sa.update(orders)
    .values(
        discount_minor=_changed.c.discount_minor,
        paid_by_balance_minor=_changed.c.paid_by_balance_minor,
        paid_by_gateway_minor=_changed.c.paid_by_gateway_minor,
        coupon_id=_changed.c.coupon_id,
        payment_id=_changed.c.payment_id,
        state=_changed.c.state,
        failure_reason=_changed.c.failure_reason,
        version=_changed.c.version,
        update_time=_changed.c.update_time,
    )
    .where(
        orders.c.order_id == _changed.c.order_id,
        orders.c.version == _changed.c.loaded_version,
        orders.c.state == _changed.c.loaded_state,
    )
)

_new = unnest("new", **{column.name: column.type for column in orders.c})
_ADD: Final = sa.insert(orders).from_select(list(_new.c.keys()), sa.select(_new))
_new_item = unnest("item", **{column.name: column.type for column in order_items.c})
_ADD_ITEMS: Final = sa.insert(order_items).from_select(
    list(_new_item.c.keys()), sa.select(_new_item)
)


async def load(
    connection: AsyncConnection, order_ids: Collection[str], *, wait_for_locks: bool
) -> LoadedOrders:
    """Lock the orders; ``wait_for_locks`` waits for rows that others hold."""
    loaded = LoadedOrders()
    if not order_ids:
        return loaded
    parameters = arrays("wanted", order_id=sorted(order_ids))
    rows = (await connection.execute(_LOCK if wait_for_locks else _LOCK_FREE, parameters)).all()
    for row in rows:
        loaded.now = row.now if loaded.now is None else max(loaded.now, row.now)
    if len(rows) < len(order_ids):
        # Not there, or skipped because somebody holds it?
        known = await connection.execute(_KNOWN, parameters)
        loaded.held = set(known.scalars()) - {row.order_id for row in rows}
    loaded.orders = {order.order_id: order for order in await with_items(connection, rows)}
    return loaded


async def save(connection: AsyncConnection, changed: Iterable[tuple[Order, Order]]) -> bool:
    """Write (loaded, changed) pairs; whether each was still in its loaded state and version."""
    pairs = sorted(changed, key=lambda pair: pair[0].order_id)
    if not pairs:
        return True
    result = await connection.execute(
        _SAVE,
        arrays(
            "changed",
            order_id=[order.order_id for _, order in pairs],
            loaded_version=[loaded.version for loaded, _ in pairs],
            loaded_state=[loaded.state.value for loaded, _ in pairs],
            discount_minor=[order.discount_minor for _, order in pairs],
            paid_by_balance_minor=[order.paid_by_balance_minor for _, order in pairs],
            paid_by_gateway_minor=[order.paid_by_gateway_minor for _, order in pairs],
            coupon_id=[order.coupon_id for _, order in pairs],
            payment_id=[order.payment_id for _, order in pairs],
            state=[order.state.value for _, order in pairs],
            failure_reason=[order.failure_reason for _, order in pairs],
            version=[order.version for _, order in pairs],
            update_time=[order.update_time for _, order in pairs],
        ),
    )
    return result.rowcount == len(pairs)


async def add(connection: AsyncConnection, new: Iterable[Order]) -> None:
    """Insert new orders with their lines."""
    rows = sorted(new, key=lambda order: order.order_id)
    if not rows:
        return
    await connection.execute(
        _ADD,
        arrays(
            "new",
            **{column.name: [getattr(row, column.name) for row in rows] for column in orders.c},
        ),
    )
    items = [(order.order_id, item) for order in rows for item in order.items]
    await connection.execute(
        _ADD_ITEMS,
        arrays(
            "item",
            order_id=[order_id for order_id, _ in items],
            product_id=[item.product_id for _, item in items],
            quantity=[item.quantity for _, item in items],
            unit_price_minor=[item.unit_price_minor for _, item in items],
        ),
    )


async def with_items(connection: AsyncConnection, rows: Sequence[Any]) -> list[Order]:
    """Orders from their rows; their lines, which never change, are read for all at once."""
    if not rows:
        return []
    items: dict[str, list[Item]] = {row.order_id: [] for row in rows}
    for row in await connection.execute(_ITEMS, arrays("wanted", order_id=list(items))):
        items[row.order_id].append(Item(row.product_id, row.quantity, row.unit_price_minor))
    return [to_order(row, items[row.order_id]) for row in rows]


def to_order(row: Any, items: Iterable[Item]) -> Order:
    return Order(
        order_id=row.order_id,
        user_id=row.user_id,
        request_id=row.request_id,
        currency_code=row.currency_code,
        items=tuple(sorted(items, key=lambda item: item.product_id)),
        subtotal_minor=row.subtotal_minor,
        discount_minor=row.discount_minor,
        paid_by_balance_minor=row.paid_by_balance_minor,
        paid_by_gateway_minor=row.paid_by_gateway_minor,
        coupon_id=row.coupon_id,
        payment_id=row.payment_id,
        state=State(row.state),
        failure_reason=row.failure_reason,
        version=row.version,
        create_time=row.create_time,
        expire_time=row.expire_time,
        update_time=row.update_time,
    )
