"""Orders and their lines in SQL."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by

from common.db.keyset import newest_first, read_readable, rows_of
from common.db.row_locks import AlsoRead, Locked, RowLocks
from common.db.rows import UNREADABLE, from_row, one_per_key, readable
from common.db.statements import Connection, Row
from common.db.unnest import arrays, arrays_of_tuples, insert_from, same, unnest
from common.db.writes import Write
from common.metrics import from_zero
from common.paging import BYTES_MAX, Page, TimePosition
from order_service.model.order import Item, Order, OrderState
from order_service.tables import order_items, order_seats, orders

_Line: TypeAlias = tuple[str, str, int, int, bool]
"""A line as in its row: order_id, product_id, quantity, unit_price_minor, seated."""


def _lines_of(rows: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """The lines of each order, ascending by product, as JSON arrays of these columns."""
    columns = order_items.c["product_id", "quantity", "unit_price_minor", "seated"]
    line = sa.func.json_build_array(*columns)
    lines = sa.func.json_agg(aggregate_order_by(line, order_items.c.product_id), type_=sa.JSON)
    of_order = sa.select(lines).where(order_items.c.order_id == rows.c.order_id)
    return [of_order.scalar_subquery().label("lines")]


# The lines of an order never change: those of the statement's snapshot are those of every version.
_ORDERS: Final[RowLocks[str]] = RowLocks(orders, "order_id", beside=_lines_of)

_item_of = unnest("wanted", orders.c.order_id)
_ITEMS: Final = sa.select(order_items).join_from(_item_of, order_items, same(order_items, _item_of))
_seats_of = unnest("seated", *order_seats.c["order_id", "product_id"])
_SEATS: Final = (
    # With a column that no index has: an index that has all could be read whole.
    sa.select(*order_seats.c["order_id", "product_id", "label", "live"])
    .join_from(_seats_of, order_seats, same(order_seats, _seats_of))
    .order_by(order_seats.c.label)
)

_MUTABLE: Final = (
    "discount_minor",
    "paid_by_balance_minor",
    "paid_by_gateway_minor",
    "coupon_id",
    "payment_id",
    "state",
    "failure_reason",
    "version",
    "update_time",
)
_changed = unnest(
    "changed",
    *orders.c[("order_id", *_MUTABLE)],
    loaded_version=sa.BigInteger,
    loaded_state=sa.Text,
)
# State and version are compared although the rows are locked: if a lock was ever not taken, the
# second transition fails instead of replacing the first.
_SAVE: Final = (
    sa.update(orders)
    .values({name: _changed.c[name] for name in _MUTABLE})
    .where(
        same(orders, _changed, ["order_id"]),
        orders.c.version == _changed.c.loaded_version,
        orders.c.state == _changed.c.loaded_state,
    )
)

_added = unnest("new", *orders.c)
_ADD: Final = insert_from(orders, _added)
_added_items = unnest("item", *order_items.c)
_ADD_ITEMS: Final = insert_from(order_items, _added_items)


async def lock(
    connection: Connection,
    order_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[str, Order]:
    """Lock the orders (``RowLocks``) and read their lines."""
    locked = await _ORDERS.lock(connection, order_ids, wait_for_locks=wait_for_locks, also=also)
    items = await _items_of(connection, locked.found.values())
    return locked.map(lambda row: _to_order(row, items[row.order_id]))


def saving(changed: Iterable[tuple[Order, Order]]) -> list[Write]:
    """The write of (loaded, changed) pairs, each still in its loaded state and version."""
    rows = [
        {name: getattr(order, name) for name in ("order_id", *_MUTABLE)}
        | {"loaded_version": loaded.version, "loaded_state": loaded.state}
        for loaded, order in changed
    ]
    return [Write(_SAVE, arrays(_changed, rows), len(rows))] if rows else []


def adding(new: Collection[Order]) -> list[Write]:
    """The writes of new orders and of their lines."""
    if not new:
        return []
    rows = sorted(new, key=lambda order: order.order_id)
    items = [
        (order.order_id, item.product_id, item.quantity, item.unit_price_minor, bool(item.seats))
        for order in rows
        for item in order.items
    ]
    return [
        Write(_ADD, arrays(_added, rows), len(rows)),
        Write(_ADD_ITEMS, arrays_of_tuples(_added_items, items), len(items)),
    ]


_user_of = unnest("asked", orders.c.user_id)
# The states are in the text, so that the index of open orders serves it.
_open_of_user = (
    sa.select(sa.func.count())
    .where(orders.c.user_id == _user_of.c.user_id, sa.text("orders.state IN ('PENDING', 'PAYING')"))
    .correlate(_user_of)
)
_COUNT_OPEN: Final = sa.select(
    _user_of.c.user_id, _open_of_user.scalar_subquery().label("open_orders")
)


async def count_open(connection: Connection, user_ids: Collection[str]) -> dict[str, int]:
    """How many orders of each user wait for their payment or are being paid."""
    asked = arrays_of_tuples(_user_of, ((user_id,) for user_id in user_ids))
    rows = await connection.execute(_COUNT_OPEN, asked)
    return {row.user_id: row.open_orders for row in rows}


# -- reads ---------------------------------------------------------------------------------------

_state = sa.bindparam("state", type_=sa.Text)
_NEWEST: Final = newest_first(
    sa.select(orders).where(
        orders.c.user_id == sa.bindparam("user_id"),
        sa.or_(_state.is_(None), orders.c.state == _state),
    ),
    orders.c.create_time,
    orders.c.order_id,
)
# now() and not clock_timestamp(), which changes during the statement and so cannot use the index.
_DUE: Final = (
    sa.select(orders.c.expire_time, orders.c.order_id)
    .where(
        orders.c.state == sa.literal_column("'PENDING'"),
        orders.c.expire_time <= sa.func.now(),
        sa.tuple_(orders.c.expire_time, orders.c.order_id)
        > sa.tuple_(
            sa.bindparam("after_time", type_=orders.c.expire_time.type),
            sa.bindparam("after_id", type_=orders.c.order_id.type),
        ),
    )
    .order_by(orders.c.expire_time, orders.c.order_id)
    .limit(sa.bindparam("size"))
)
_known = unnest("known", *orders.c["order_id", "version"])
_CHANGED: Final = sa.select(orders).join_from(
    _known,
    orders,
    sa.and_(same(orders, _known, ["order_id"]), orders.c.version > _known.c.version),
)
_ORDERS_AT_ONCE: Final = 50
from_zero(UNREADABLE, ["order"])
_LINES_MAX: Final = BYTES_MAX // 50
"""More lines than a page holds: the message of a line has more than 50 bytes, 36 of them its id."""


async def find_orders(
    connection: Connection, order_ids: Sequence[str]
) -> list[Order | Exception | None]:
    """These orders as last committed, in their order."""
    found = (await _ORDERS.read(connection, order_ids)).found
    items = await _items_of(connection, found.values())
    return one_per_key(order_ids, found, lambda row: _to_order(row, items[row.order_id]))


async def read_orders(
    connection: Connection, user_id: str, state: OrderState | None, page: Page
) -> list[Order]:
    """The page's orders of the user, newest first, and one more if there is one.

    Some at a time, and no more once their lines alone fill a page: 500 orders may have 50,000.
    """
    parameters = {"user_id": user_id, "state": state, **rows_of(page)}
    lines = 0

    async def convert(rows: Sequence[Row]) -> list[Order]:
        nonlocal lines
        read: list[Order] = []
        for at in range(0, len(rows), _ORDERS_AT_ONCE):
            some = rows[at : at + _ORDERS_AT_ONCE]
            items = await _read_items(connection, some)
            orders = readable("order", some, lambda row: _to_order(row, items[row.order_id]))  # noqa: B023
            read += orders
            lines += sum(len(order.items) for order in orders)
            if lines > _LINES_MAX:
                break
        return read

    return await read_readable(
        connection,
        _NEWEST,
        parameters,
        lambda row: {"before_time": row.create_time, "before_id": row.order_id},
        convert,
        full=lambda: lines > _LINES_MAX,
    )


async def read_due(connection: Connection, *, after: TimePosition, size: int) -> list[TimePosition]:
    """At most ``size`` pending orders whose time has passed, the longest overdue first.

    ``after``: the last one of the call before.
    """
    asked = {"size": size, "after_time": after.time, "after_id": after.id}
    return [TimePosition(*row) for row in await connection.execute(_DUE, asked)]


async def read_changed(connection: Connection, known: Mapping[str, Order]) -> list[Order]:
    """Those of the known orders that have a later version now."""
    rows = await connection.execute(_CHANGED, arrays(_known, known.values()))
    # The lines of an order never change, so they need not be read again.
    return readable("order", rows, lambda row: _to_order(row, known[row.order_id].items))


async def _read_items(connection: Connection, rows: Sequence[Row]) -> defaultdict[str, list[Item]]:
    """The lines of these orders, by order_id, in one statement, or two if a line has seats."""
    found = await connection.execute(_ITEMS, arrays(_item_of, rows))
    return await _with_seats(connection, [(*row,) for row in found])


async def _items_of(connection: Connection, rows: Iterable[Row]) -> defaultdict[str, list[Item]]:
    """The lines that these orders were read with, in a statement more if a line has seats."""
    lines: list[_Line] = [
        (row.order_id, *line) for row in rows for line in json.loads(row.lines or "[]")
    ]
    return await _with_seats(connection, lines)


async def _with_seats(
    connection: Connection, lines: Sequence[_Line]
) -> defaultdict[str, list[Item]]:
    """The lines with their seats, by order_id."""
    seats: dict[tuple[str, str], list[str]] = {}
    if seated := [(order_id, product_id) for order_id, product_id, *_, has in lines if has]:
        for order_id, product_id, label, _live in await connection.execute(
            _SEATS, arrays_of_tuples(_seats_of, seated)
        ):
            seats.setdefault((order_id, product_id), []).append(label)
    items: defaultdict[str, list[Item]] = defaultdict(list)
    for order_id, product_id, quantity, price_minor, _seated in lines:
        labels = tuple(seats.get((order_id, product_id), ()))
        items[order_id].append(Item(product_id, quantity, price_minor, labels))
    return items


def _to_order(row: Row, items: Iterable[Item]) -> Order:
    sorted_items = tuple(sorted(items, key=lambda item: item.product_id))
    return from_row(Order, row, items=sorted_items, state=OrderState(row.state))
