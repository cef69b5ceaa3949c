"""Coupons: issued once, used by conditional update, read and listed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from coupon_service.model.coupons import Coupon
from coupon_service.model.terms import Terms
from coupon_service.store.campaigns import to_terms
from coupon_service.tables import campaigns, coupons

_now: Final = sa.func.clock_timestamp(type_=coupons.c.issue_time.type).label("now")

Claim = tuple[str, str]
"""Who wants a coupon of what: (campaign_id, user_id)."""


# -- issuing -------------------------------------------------------------------------------------

_claimed = unnest("claimed", campaign_id=coupons.c.campaign_id.type, user_id=sa.Text)
_FIND_ISSUED: Final = sa.select(coupons, _now).join_from(
    _claimed,
    coupons,
    sa.and_(
        coupons.c.campaign_id == _claimed.c.campaign_id, coupons.c.user_id == _claimed.c.user_id
    ),
)

_ISSUED_COLUMNS: Final = (
    "coupon_id",
    "campaign_id",
    "user_id",
    "issue_number",
    "request_id",
    "issue_time",
    "expire_time",
)
_issued = unnest("issued", **{name: coupons.c[name].type for name in _ISSUED_COLUMNS})
_ADD: Final = sa.insert(coupons).from_select(list(_issued.c.keys()), sa.select(_issued))


async def find_issued(
    connection: AsyncConnection, claims: Collection[Claim]
) -> dict[Claim, Coupon]:
    """Of these users, those who have a coupon of that campaign. Call it with the row locked."""
    rows = await connection.execute(
        _FIND_ISSUED,
        arrays(
            "claimed",
            campaign_id=[campaign_id for campaign_id, _ in claims],
            user_id=[user_id for _, user_id in claims],
        ),
    )
    return {(row.campaign_id, row.user_id): to_coupon(row) for row in rows}


async def add(connection: AsyncConnection, issued: Sequence[Coupon]) -> None:
    """Write new coupons."""
    if not issued:
        return
    await connection.execute(
        _ADD,
        arrays(
            "issued",
            **{name: [getattr(coupon, name) for coupon in issued] for name in _ISSUED_COLUMNS},
        ),
    )


# -- using ---------------------------------------------------------------------------------------

_wanted = unnest("wanted", coupon_id=coupons.c.coupon_id.type)
_is_wanted: Final = coupons.c.coupon_id == _wanted.c.coupon_id


def _loading(found: sa.FromClause) -> sa.Select[Any]:
    return sa.select(
        *found.c,
        campaigns.c.currency_code,
        campaigns.c.fixed_discount_minor,
        campaigns.c.percent_discount,
        campaigns.c.max_discount_minor,
        campaigns.c.min_order_minor,
        _now,
    ).join_from(found, campaigns, campaigns.c.campaign_id == found.c.campaign_id)


_LOAD: Final = _loading(
    sa.select(coupons).join_from(_wanted, coupons, _is_wanted).subquery("found")
)
# The clock is read outside, when the rows are ours.
_LOCK: Final = _loading(
    sa.select(coupons)
    .join_from(_wanted, coupons, _is_wanted)
    .order_by(coupons.c.coupon_id)
    .with_for_update(of=coupons, key_share=True)
    .cte("locked")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)

_used = unnest(
    "used",
    coupon_id=coupons.c.coupon_id.type,
    loaded_request_id=sa.Text,
    redeem_request_id=sa.Text,
    order_id=sa.Text,
    redeem_time=coupons.c.redeem_time.type,
)


# An UPDATE locks in the order of its plan, so the rows are taken in ascending order first. Under
# the lock the condition is judged on the row as it is then, not as the statement began with it.
_unmoved = (
    sa.select(coupons.c.coupon_id)
    .join_from(_used, coupons, coupons.c.coupon_id == _used.c.coupon_id)
    .where(coupons.c.redeem_request_id.is_not_distinct_from(_used.c.loaded_request_id))
    .order_by(coupons.c.coupon_id)
    .with_for_update(of=coupons, key_share=True, skip_locked=True)
    .cte("unmoved")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
_SAVE: Final = (
    sa.update(coupons)
    .values(
        redeem_request_id=_used.c.redeem_request_id,
        order_id=_used.c.order_id,
        redeem_time=_used.c.redeem_time,
    )
    .where(coupons.c.coupon_id == _unmoved.c.coupon_id, coupons.c.coupon_id == _used.c.coupon_id)
    .returning(coupons.c.coupon_id)
)


@dataclass(slots=True)
class Loaded:
    """The coupons a batch is about, with what each takes off an order."""

    coupons: dict[str, Coupon] = field(default_factory=dict)
    terms: dict[str, Terms] = field(default_factory=dict)


async def load(
    connection: AsyncConnection, wanted: Collection[str], *, wait_for_locks: bool
) -> Loaded:
    """Read the wanted coupons, or lock them for a ``wait_for_locks`` batch, waiting for who holds them."""
    loaded = Loaded()
    if not wanted:
        return loaded
    parameters = arrays("wanted", coupon_id=list(wanted))
    for row in await connection.execute(_LOCK if wait_for_locks else _LOAD, parameters):
        loaded.coupons[row.coupon_id] = to_coupon(row)
        loaded.terms[row.coupon_id] = to_terms(row)
    return loaded


async def save(
    connection: AsyncConnection, changed: Sequence[Coupon], loaded: Mapping[str, Coupon]
) -> set[str]:
    """Write the coupons whose use is still as ``loaded``; returns which those were.

    Rows that another transaction holds are left out too.
    """
    if not changed:
        return set()
    rows = sorted(changed, key=lambda coupon: coupon.coupon_id)
    saved = await connection.execute(
        _SAVE,
        arrays(
            "used",
            coupon_id=[row.coupon_id for row in rows],
            loaded_request_id=[loaded[row.coupon_id].redeem_request_id for row in rows],
            redeem_request_id=[row.redeem_request_id for row in rows],
            order_id=[row.order_id for row in rows],
            redeem_time=[row.redeem_time for row in rows],
        ),
    )
    return set(saved.scalars())


# -- reads ---------------------------------------------------------------------------------------

_ONE: Final = sa.select(coupons, _now).where(
    coupons.c.coupon_id == sa.bindparam("coupon_id"), coupons.c.user_id == sa.bindparam("user_id")
)
_NEWEST: Final = (
    sa.select(coupons, _now)
    .where(coupons.c.user_id == sa.bindparam("user_id"))
    .order_by(coupons.c.issue_time.desc(), coupons.c.coupon_id.desc())
    .limit(sa.bindparam("size"))
)
_OLDER: Final = _NEWEST.where(
    sa.tuple_(coupons.c.issue_time, coupons.c.coupon_id)
    < sa.tuple_(
        sa.bindparam("before_time", type_=coupons.c.issue_time.type),
        sa.bindparam("before_id", type_=coupons.c.coupon_id.type),
    )
)


async def read_one(connection: AsyncConnection, coupon_id: str, user_id: str) -> Coupon | None:
    """One coupon of the user as it was last committed."""
    asked = {"coupon_id": coupon_id, "user_id": user_id}
    row = (await connection.execute(_ONE, asked)).one_or_none()
    return None if row is None else to_coupon(row)


async def read_page(
    connection: AsyncConnection,
    user_id: str,
    *,
    before: tuple[datetime, str] | None,
    size: int,
) -> list[Coupon]:
    """At most ``size`` coupons of the user, newest first, that are older than ``before``."""
    asked: dict[str, Any] = {"user_id": user_id, "size": size}
    if before is None:
        rows = await connection.execute(_NEWEST, asked)
    else:
        place = {"before_time": before[0], "before_id": before[1]}
        rows = await connection.execute(_OLDER, asked | place)
    return [to_coupon(row) for row in rows]


def to_coupon(row: sa.Row[Any]) -> Coupon:
    """The coupon in a row that has its columns and the clock."""
    return Coupon(
        row.coupon_id,
        row.campaign_id,
        row.user_id,
        row.issue_number,
        row.request_id,
        row.issue_time,
        row.expire_time,
        row.now,
        row.redeem_request_id,
        row.order_id,
        row.redeem_time,
    )
