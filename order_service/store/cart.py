"""Carts in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from common.db.statements import Connection, Row
from common.db.unnest import arrays_of_tuples, same, unnest
from order_service.model.cart import Cart
from order_service.model.order import Line
from order_service.tables import CART_ONCE, cart_items, carts

_UUID: Final = sa.UUID(as_uuid=False)
_user = sa.bindparam("user_id", type_=sa.Text)
_expected = sa.bindparam("expected_version", type_=sa.BigInteger)

# The first change inserts the cart's row, if it expects version 0 or none. A later change updates
# the row; one that expects another version than the row's changes nothing.
_inserting = insert(carts).from_select(
    ["user_id", "version", "update_time"],
    sa.select(_user, sa.literal(1, sa.BigInteger), sa.func.clock_timestamp()).where(
        sa.or_(
            sa.func.coalesce(_expected, 0) == 0,
            sa.exists(sa.select(carts.c.user_id).where(carts.c.user_id == _user)),
        )
    ),
)
_RAISE: Final = _inserting.on_conflict_do_update(
    constraint=CART_ONCE,
    set_={
        "version": carts.c.version + 1,
        # The database's clock may be set back; a cart's update_time must not go back.
        "update_time": sa.func.greatest(carts.c.update_time, _inserting.excluded.update_time),
    },
    where=sa.or_(_expected.is_(None), carts.c.version == _expected),
).returning(carts.c.version)

_LOCK: Final = (
    sa.select(carts.c.user_id)
    .where(carts.c.user_id == _user)
    .with_for_update(key_share=True, nowait=True)
)

_setting = insert(cart_items).values(
    user_id=_user,
    product_id=sa.bindparam("product_id", type_=_UUID),
    quantity=sa.bindparam("quantity", type_=sa.BigInteger),
)
_SET: Final = _setting.on_conflict_do_update(
    constraint="cart_items_pkey",
    set_={"quantity": _setting.excluded.quantity},
    where=cart_items.c.quantity != _setting.excluded.quantity,
)
_REMOVE: Final = sa.delete(cart_items).where(
    cart_items.c.user_id == _user,
    cart_items.c.product_id == sa.bindparam("product_id", type_=_UUID),
)
_CLEAR: Final = sa.delete(cart_items).where(cart_items.c.user_id == _user)
_COUNT: Final = (
    sa.select(sa.func.count()).select_from(cart_items).where(cart_items.c.user_id == _user)
)
_asked = unnest("asked", carts.c.user_id)
# One statement has one snapshot: lines and version belong together.
_READ: Final = (
    sa.select(carts, *cart_items.c["product_id", "quantity"])
    .join_from(_asked, carts, same(carts, _asked))
    .outerjoin(cart_items, same(cart_items, carts, ["user_id"]))
    .order_by(_asked.c.user_id, cart_items.c.product_id)
)


async def lock(connection: Connection, user_id: str) -> None:
    """Lock the cart, if it has a row. Fails at once if another transaction has locked it."""
    await connection.execute(_LOCK, {"user_id": user_id})


async def raise_version(connection: Connection, user_id: str, expected_version: int | None) -> bool:
    """Raise the cart's version; False if it is not at the expected version.

    Until the commit, other changes of this cart wait.
    """
    raised = await connection.execute(
        _RAISE, {"user_id": user_id, "expected_version": expected_version}
    )
    return raised.one_or_none() is not None


async def set_item(connection: Connection, user_id: str, product_id: str, quantity: int) -> bool:
    """Set the line, or remove it if the quantity is 0; whether that changed anything."""
    line = {"user_id": user_id, "product_id": product_id}
    if quantity:
        result = await connection.execute(_SET, {**line, "quantity": quantity})
    else:
        result = await connection.execute(_REMOVE, line)
    return result.rowcount > 0


async def clear(connection: Connection, user_id: str) -> bool:
    """Remove all lines; whether there were any."""
    return (await connection.execute(_CLEAR, {"user_id": user_id})).rowcount > 0


async def count_items(connection: Connection, user_id: str) -> int:
    """The number of products in the cart."""
    count: int = (await connection.execute(_COUNT, {"user_id": user_id})).scalar_one()
    return count


async def find_carts(connection: Connection, user_ids: Sequence[str]) -> list[Cart]:
    """The users' carts as last committed, in their order.

    One that was never changed is empty and at version 0.
    """
    parameters = arrays_of_tuples(_asked, [(user_id,) for user_id in user_ids])
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in await connection.execute(_READ, parameters):
        rows[row.user_id].append(row)
    return [_to_cart(user_id, rows[user_id]) for user_id in user_ids]


def _to_cart(user_id: str, rows: Sequence[Row]) -> Cart:
    if not rows:
        return Cart(user_id, (), 0, None)
    lines = tuple(Line(row.product_id, row.quantity) for row in rows if row.product_id is not None)
    return Cart(user_id, lines, rows[0].version, rows[0].update_time)
