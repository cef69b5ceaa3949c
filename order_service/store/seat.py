"""Seats in SQL, and which seats orders have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import sqlalchemy as sa

from common.db.row_locks import RowLocks, locked
from common.db.rows import from_row
from common.db.statements import Connection, Row
from common.db.unnest import arrays, arrays_of_tuples, insert_from, same, unnest
from common.db.writes import Write
from common.paging import Page
from order_service.model.order import Order
from order_service.model.seat import MapSeat, Seat, SeatKey, SeatState
from order_service.tables import order_seats, products, seats

_SEATS: Final[RowLocks[tuple[str, str]]] = RowLocks(seats, *SeatKey._fields)

_asked = unnest("asked", *seats.c[SeatKey._fields])
_TAKEN: Final = (
    sa.select(*seats.c[SeatKey._fields])
    .join_from(_asked, seats, same(seats, _asked))
    .where(seats.c.state != sa.literal_column("'FREE'"))
)

# No lock before the write: the lock of the product excludes every other writer. If it was never
# taken, the second writer waits here for the first, and then finds another version.
_changed = unnest(
    "moved_seat",
    *seats.c[(*SeatKey._fields, "state", "order_id", "version")],
    loaded_version=sa.BigInteger,
    loaded_state=sa.Text,
)
_unchanged = locked(
    seats,
    sa.select(_changed)
    .join_from(_changed, seats, same(seats, _changed, SeatKey._fields))
    .where(seats.c.version == _changed.c.loaded_version, seats.c.state == _changed.c.loaded_state),
    order_by=list(_changed.c[SeatKey._fields]),
    skip_locked=False,
    name="unchanged",
)
_SAVE: Final = (
    sa.update(seats)
    .values({name: _unchanged.c[name] for name in ("state", "order_id", "version")})
    .where(same(seats, _unchanged, SeatKey._fields))
)

_added = unnest("new_seat", *seats.c)
_ADD: Final = insert_from(seats, _added, SeatKey._fields)

_named = unnest("named", *order_seats.c)
_ADD_TO_ORDERS: Final = insert_from(order_seats, _named, SeatKey._fields)
_freed = unnest("freed", order_seats.c.order_id)
_FREE: Final = (
    sa.update(order_seats)
    .values(live=sa.false())
    .where(same(order_seats, _freed), order_seats.c.live.is_not(sa.false()))
)


async def find(connection: Connection, keys: Collection[SeatKey]) -> dict[SeatKey, Seat]:
    """The seats with these keys that exist. Lock their products first, to change them."""
    found = (await _SEATS.read(connection, keys)).found.values()
    return {seat.key: seat for seat in map(_to_seat, found)}


async def find_taken(connection: Connection, keys: Collection[SeatKey]) -> set[SeatKey]:
    """Those of the seats that are not free, as last committed."""
    rows = await connection.execute(_TAKEN, arrays_of_tuples(_asked, keys))
    return {SeatKey(*row) for row in rows}


def saving(changed: Iterable[tuple[Seat, Seat]]) -> list[Write]:
    """The write of (loaded, changed) pairs, each still in its loaded state and version."""
    rows = [
        {
            "product_id": seat.product_id,
            "label": seat.label,
            "state": seat.state,
            "order_id": seat.order_id,
            "version": seat.version,
            "loaded_version": loaded.version,
            "loaded_state": loaded.state,
        }
        for loaded, seat in changed
    ]
    return [Write(_SAVE, arrays(_changed, rows), len(rows))] if rows else []


def adding(new: Collection[Seat]) -> list[Write]:
    """The write of new seats, in ascending order."""
    return [Write(_ADD, arrays(_added, new), len(new))] if new else []


def adding_to_orders(orders: Iterable[Order]) -> list[Write]:
    """The write of which seats new orders have, in ascending order of the seats."""
    rows = [(order.order_id, *key, True) for order in orders for key in order.seats]
    return [Write(_ADD_TO_ORDERS, arrays_of_tuples(_named, rows), len(rows))] if rows else []


def freeing(order_ids: Collection[str]) -> list[Write]:
    """The write that these orders do not have their seats any more. Lock the orders first."""
    rows = [(order_id,) for order_id in sorted(order_ids)]
    return [Write(_FREE, arrays_of_tuples(_freed, rows), None)] if rows else []


# -- reads ---------------------------------------------------------------------------------------

_state = sa.bindparam("state", type_=sa.Text)
_LIST: Final = (
    sa.select(seats)
    .where(
        seats.c.product_id == sa.bindparam("product_id"),
        seats.c.label > sa.bindparam("after", type_=seats.c.label.type),
        sa.or_(_state.is_(None), seats.c.state == _state),
    )
    .order_by(seats.c.label)
    .limit(sa.bindparam("size"))
)
_SHOWN: Final = MapSeat._fields
_MAP: Final = (
    sa.select(*seats.c[_SHOWN])
    .where(
        seats.c.product_id == sa.bindparam("product_id"),
        sa.tuple_(seats.c.version, seats.c.label)
        > sa.tuple_(
            sa.bindparam("after_version", type_=sa.BigInteger),
            sa.bindparam("after_label", type_=seats.c.label.type),
        ),
    )
    .order_by(seats.c.version, seats.c.label)
    .limit(sa.bindparam("size"))
)
_known = unnest("known", *seats.c["product_id", "version"])
_newer = (
    sa.select(*seats.c[_SHOWN])
    .where(seats.c.product_id == _known.c.product_id, seats.c.version > _known.c.version)
    .order_by(seats.c.version)
    .limit(sa.bindparam("size"))
    .lateral("newer")
)
# A product's row without a seat: the product is behind the known version.
_CHANGES: Final = (
    sa.select(_known.c.product_id, *_newer.c[_SHOWN])
    .select_from(
        _known.join(products, same(products, _known, ["product_id"])).outerjoin(_newer, sa.true())
    )
    .where(sa.or_(_newer.c.version.is_not(None), products.c.version < _known.c.version))
    # The order of a subquery is not that of the statement.
    .order_by(_newer.c.version)
)


async def read_seats(
    connection: Connection, product_id: str, state: SeatState | None, page: Page
) -> list[Seat]:
    """The page's seats of the product, by label, and one more if there is one."""
    after = "" if page.after is None else page.after[0]
    asked = {"product_id": product_id, "state": state, "after": after, "size": page.size + 1}
    return [_to_seat(row) for row in await connection.execute(_LIST, asked)]


async def read_map(
    connection: Connection, product_id: str, *, after: tuple[int, str], size: int
) -> list[MapSeat]:
    """At most ``size`` seats of the product, by version and label, that follow ``after``.

    A seat that changes between two reads comes again, with its later version.
    """
    asked = {"product_id": product_id, "size": size}
    asked |= {"after_version": after[0], "after_label": after[1]}
    return [_to_map_seat(row) for row in await connection.execute(_MAP, asked)]


async def read_changes(
    connection: Connection, known: Mapping[str, int], *, size: int
) -> tuple[dict[str, list[MapSeat]], set[str]]:
    """For each product, at most ``size`` seats that are newer than its known version, ascending;
    and the products that have an earlier version.

    Products without newer seats are left out: one statement asks for all of them.
    """
    newer: dict[str, list[MapSeat]] = {}
    earlier: set[str] = set()
    parameters = arrays_of_tuples(_known, known.items())
    for row in await connection.execute(_CHANGES, {**parameters, "size": size}):
        if row.label is None:
            earlier.add(row.product_id)
        else:
            newer.setdefault(row.product_id, []).append(_to_map_seat(row))
    return newer, earlier


def _to_map_seat(row: Row) -> MapSeat:
    return MapSeat(row.label, SeatState(row.state), row.version)


def _to_seat(row: Row) -> Seat:
    return from_row(Seat, row, state=SeatState(row.state))
