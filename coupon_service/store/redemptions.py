"""Redemptions: every use there has been, written once and undone at most once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from common.money import Money
from coupon_service.model.coupons import Redemption
from coupon_service.tables import redemptions

RedemptionId = tuple[str, str]
"""A redemption by (user_id, request_id)."""

_named = unnest("named", user_id=sa.Text, request_id=sa.Text)
_FIND: Final = sa.select(redemptions).join_from(
    _named,
    redemptions,
    sa.and_(
        redemptions.c.user_id == _named.c.user_id,
        redemptions.c.request_id == _named.c.request_id,
    ),
)

_added = unnest("added", **{column.name: column.type for column in redemptions.c})
_COLUMNS: Final = list(_added.c.keys())
_ADD: Final = sa.insert(redemptions).from_select(
    _COLUMNS, sa.select(_added).order_by(_added.c.user_id, _added.c.request_id)
)

_undone = unnest(
    "undone",
    user_id=sa.Text,
    request_id=sa.Text,
    restore_request_id=sa.Text,
    restore_time=redemptions.c.restore_time.type,
)
# Their coupons' rows are ours by now, and with them these: the order of writing does not matter.
_RESTORE: Final = (
    sa.update(redemptions)
    .values(restore_request_id=_undone.c.restore_request_id, restore_time=_undone.c.restore_time)
    .where(
        redemptions.c.user_id == _undone.c.user_id,
        redemptions.c.request_id == _undone.c.request_id,
        redemptions.c.restore_time.is_(None),
    )
)


async def find(
    connection: AsyncConnection, named: Collection[RedemptionId]
) -> dict[RedemptionId, Redemption]:
    """Those of the named redemptions that happened, restored since or not."""
    if not named:
        return {}
    rows = await connection.execute(
        _FIND,
        arrays(
            "named",
            user_id=[user_id for user_id, _ in named],
            request_id=[request_id for _, request_id in named],
        ),
    )
    return {(row.user_id, row.request_id): _to_redemption(row) for row in rows}


async def add(connection: AsyncConnection, added: Sequence[Redemption]) -> None:
    """Write new redemptions."""
    if not added:
        return
    rows = [_row(redemption) for redemption in added]
    columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    await connection.execute(_ADD, arrays("added", **columns))


async def restore(connection: AsyncConnection, undone: Sequence[Redemption]) -> None:
    """Write that these live redemptions were undone."""
    if not undone:
        return
    await connection.execute(
        _RESTORE,
        arrays(
            "undone",
            user_id=[redemption.user_id for redemption in undone],
            request_id=[redemption.request_id for redemption in undone],
            restore_request_id=[redemption.restore_request_id for redemption in undone],
            restore_time=[redemption.restore_time for redemption in undone],
        ),
    )


def _row(redemption: Redemption) -> dict[str, Any]:
    return {
        "user_id": redemption.user_id,
        "request_id": redemption.request_id,
        "coupon_id": redemption.coupon_id,
        "order_id": redemption.order_id,
        "currency_code": redemption.order_amount.currency_code,
        "order_amount_minor": redemption.order_amount.amount_minor,
        "discount_minor": redemption.discount.amount_minor,
        "redeem_time": redemption.redeem_time,
        "restore_request_id": redemption.restore_request_id,
        "restore_time": redemption.restore_time,
    }


def _to_redemption(row: sa.Row[Any]) -> Redemption:
    return Redemption(
        row.user_id,
        row.request_id,
        row.coupon_id,
        row.order_id,
        Money(row.currency_code, row.order_amount_minor),
        Money(row.currency_code, row.discount_minor),
        row.redeem_time,
        row.restore_request_id,
        row.restore_time,
    )
