"""Orders in SQL, read without locks: one, a user's, those that are due, those that changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from order_service.model.orders import Order, State
from order_service.store.orders import to_order, with_items
from order_service.tables import orders

_UUID: Final = sa.UUID(as_uuid=False)
_TIME: Final = sa.DateTime(timezone=True)

_ONE: Final = sa.select(orders).where(orders.c.order_id == sa.bindparam("order_id"))
_state = sa.bindparam("state", type_=sa.Text)
_NEWEST: Final = (
    sa.select(orders)
    .where(
        orders.c.user_id == sa.bindparam("user_id"),
        sa.or_(_state.is_(None), orders.c.state == _state),
        sa.tuple_(orders.c.create_time, orders.c.order_id)
        < sa.tuple_(
            sa.bindparam("before_time", type_=_TIME), sa.bindparam("before_id", type_=_UUID)
        ),
    )
    .order_by(orders.c.create_time.desc(), orders.c.order_id.desc())
    .limit(sa.bindparam("size"))
)
# now() and not clock_timestamp(): the index can be searched for what does not change meanwhile.
_DUE: Final = (
    sa.select(orders.c.order_id)
    .where(orders.c.state == sa.literal_column("'PENDING'"), orders.c.expire_time <= sa.func.now())
    .order_by(orders.c.expire_time)
    .limit(sa.bindparam("size"))
)
_known = unnest("known", order_id=_UUID, version=sa.BigInteger)
_CHANGED: Final = sa.select(orders).join_from(
    _known,
    orders,
    sa.and_(orders.c.order_id == _known.c.order_id, orders.c.version > _known.c.version),
)


async def read_order(connection: AsyncConnection, order_id: str) -> Order | None:
    """One order as it was last committed."""
    rows = (await connection.execute(_ONE, {"order_id": order_id})).all()
    return next(iter(await with_items(connection, rows)), None)


async def read_orders(
    connection: AsyncConnection,
    user_id: str,
    state: State | None,
    *,
    before: tuple[datetime, str],
    size: int,
) -> list[Order]:
    """At most ``size`` orders of the user made before that one, newest first."""
    rows = await connection.execute(
        _NEWEST,
        {
            "user_id": user_id,
            "state": None if state is None else state.value,
            "before_time": before[0],
            "before_id": before[1],
            "size": size,
        },
    )
    return await with_items(connection, rows.all())


async def read_due(connection: AsyncConnection, *, size: int) -> list[str]:
    """At most ``size`` orders whose time has passed, the longest overdue first."""
    return list((await connection.execute(_DUE, {"size": size})).scalars())


async def read_changed(connection: AsyncConnection, known: Mapping[str, Order]) -> list[Order]:
    """Those of the known orders that are at a later version by now."""
    rows = await connection.execute(
        _CHANGED,
        arrays(
            "known",
            order_id=list(known),
            version=[order.version for order in known.values()],
        ),
    )
    # The lines of an order never change: those that are known need not be read again.
    return [to_order(row, known[row.order_id].items) for row in rows]
