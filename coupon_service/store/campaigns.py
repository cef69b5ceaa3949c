"""Campaigns: created once, locked to issue from, read and listed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from coupon_service.model.campaigns import Campaign
from coupon_service.model.terms import Terms
from coupon_service.tables import campaigns

_now: Final = sa.func.clock_timestamp(type_=campaigns.c.create_time.type).label("now")


# -- writing -------------------------------------------------------------------------------------

_added = unnest(
    "added",
    **{column.name: column.type for column in campaigns.c},
)
_COLUMNS: Final = list(_added.c.keys())
_ADD: Final = sa.insert(campaigns).from_select(
    _COLUMNS, sa.select(_added).order_by(_added.c.request_id)
)
_CLOCK: Final = sa.select(_now)


async def read_clock(connection: AsyncConnection) -> datetime:
    """The database's time."""
    now: datetime = (await connection.execute(_CLOCK)).scalar_one()
    return now


async def add(connection: AsyncConnection, created: Sequence[tuple[Campaign, str]]) -> None:
    """Write new campaigns, each with the request_id that it was created by."""
    if not created:
        return
    rows = [_row(campaign) | {"request_id": request_id} for campaign, request_id in created]
    columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    await connection.execute(_ADD, arrays("added", **columns))


def _row(campaign: Campaign) -> dict[str, Any]:
    terms = campaign.terms
    return {
        "campaign_id": campaign.campaign_id,
        "name": campaign.name,
        "currency_code": terms.currency_code,
        "fixed_discount_minor": terms.fixed_discount_minor,
        "percent_discount": terms.percent_discount,
        "max_discount_minor": terms.max_discount_minor,
        "min_order_minor": terms.min_order_minor,
        "quantity": campaign.quantity,
        "issued": campaign.issued,
        "start_time": campaign.start_time,
        "end_time": campaign.end_time,
        "coupon_lifetime_us": campaign.coupon_lifetime_us,
        "create_time": campaign.create_time,
    }


# -- issuing -------------------------------------------------------------------------------------

_wanted = unnest("wanted", campaign_id=campaigns.c.campaign_id.type)
_is_wanted: Final = campaigns.c.campaign_id == _wanted.c.campaign_id


def _locking(*, skip_locked: bool) -> sa.Select[Any]:
    """All wanted rows, in the order of their ids; those that could not be locked have no state."""
    locked = (
        sa.select(campaigns)
        .join_from(_wanted, campaigns, _is_wanted)
        .order_by(campaigns.c.campaign_id)
        .with_for_update(of=campaigns, key_share=True, skip_locked=skip_locked)
        .cte("locked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return sa.select(campaigns.c.campaign_id.label("wanted_id"), *locked.c, _now).select_from(
        _wanted.join(campaigns, _is_wanted).outerjoin(
            locked, locked.c.campaign_id == campaigns.c.campaign_id
        )
    )


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)

_counted = unnest(
    "counted", campaign_id=campaigns.c.campaign_id.type, issued=campaigns.c.issued.type
)
# The rows are locked by now: the order in which they are written does not matter.
_SAVE: Final = (
    sa.update(campaigns)
    .values(issued=_counted.c.issued)
    .where(campaigns.c.campaign_id == _counted.c.campaign_id)
)


@dataclass(slots=True)
class Loaded:
    """The campaigns a batch is about."""

    campaigns: dict[str, Campaign] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Those that exist but are locked by another transaction."""


async def lock(
    connection: AsyncConnection, wanted: Collection[str], *, wait_for_locks: bool
) -> Loaded:
    """Lock the wanted campaigns; ``wait_for_locks`` waits for rows that others hold."""
    rows = await connection.execute(
        _LOCK if wait_for_locks else _LOCK_FREE, arrays("wanted", campaign_id=list(wanted))
    )
    loaded = Loaded()
    for row in rows:
        if row.campaign_id is None:
            loaded.held.add(row.wanted_id)
        else:
            loaded.campaigns[row.campaign_id] = to_campaign(row)
    return loaded


async def save_issued(connection: AsyncConnection, changed: Sequence[Campaign]) -> None:
    """Write how many coupons of these locked campaigns have been issued."""
    if not changed:
        return
    await connection.execute(
        _SAVE,
        arrays(
            "counted",
            campaign_id=[campaign.campaign_id for campaign in changed],
            issued=[campaign.issued for campaign in changed],
        ),
    )


# -- reads ---------------------------------------------------------------------------------------

_ONE: Final = sa.select(campaigns, _now).where(
    campaigns.c.campaign_id == sa.bindparam("campaign_id")
)
_NEWEST: Final = (
    sa.select(campaigns, _now)
    .order_by(campaigns.c.create_time.desc(), campaigns.c.campaign_id.desc())
    .limit(sa.bindparam("size"))
)
_OLDER: Final = _NEWEST.where(
    sa.tuple_(campaigns.c.create_time, campaigns.c.campaign_id)
    < sa.tuple_(
        sa.bindparam("before_time", type_=campaigns.c.create_time.type),
        sa.bindparam("before_id", type_=campaigns.c.campaign_id.type),
    )
)


async def read_one(connection: AsyncConnection, campaign_id: str) -> Campaign | None:
    """One campaign as it was last committed."""
    row = (await connection.execute(_ONE, {"campaign_id": campaign_id})).one_or_none()
    return None if row is None else to_campaign(row)


async def read_page(
    connection: AsyncConnection, *, before: tuple[datetime, str] | None, size: int
) -> list[Campaign]:
    """At most ``size`` campaigns, newest first, that are older than ``before``."""
    if before is None:
        rows = await connection.execute(_NEWEST, {"size": size})
    else:
        place = {"before_time": before[0], "before_id": before[1]}
        rows = await connection.execute(_OLDER, place | {"size": size})
    return [to_campaign(row) for row in rows]


def to_campaign(row: sa.Row[Any], prefix: str = "") -> Campaign:
    """The campaign in a row that has its columns, under names that begin with ``prefix``."""
    column = row._mapping  # noqa: SLF001 - SQLAlchemy's public way to read a row by name
    return Campaign(
        column[prefix + "campaign_id"],
        column[prefix + "name"],
        to_terms(row, prefix),
        column[prefix + "quantity"],
        column[prefix + "issued"],
        column[prefix + "start_time"],
        column[prefix + "end_time"],
        column[prefix + "coupon_lifetime_us"],
        column[prefix + "create_time"],
        as_of=row.now,
    )


def to_terms(row: sa.Row[Any], prefix: str = "") -> Terms:
    """The campaign's terms in such a row."""
    column = row._mapping  # noqa: SLF001
    return Terms(
        column[prefix + "currency_code"],
        column[prefix + "fixed_discount_minor"],
        column[prefix + "percent_discount"],
        column[prefix + "max_discount_minor"],
        column[prefix + "min_order_minor"],
    )
