"""SQL for campaigns: create them, lock and count them when coupons are issued, read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.keyset import at_most, newest_first
from common.db.row_locks import CLOCK, RowLocks
from common.db.rows import from_row
from common.db.unnest import arrays, unnest
from common.paging import TimePosition
from coupon_service.model.campaign import Campaign, Terms
from coupon_service.tables import campaigns

# -- writes --------------------------------------------------------------------------------------

_CAMPAIGNS: Final[RowLocks[str]] = RowLocks(campaigns, "campaign_id")

_added = unnest("added", *campaigns.c)
_ADD: Final = sa.insert(campaigns).from_select(
    list(_added.c.keys()), sa.select(_added).order_by(_added.c.request_id)
)

_counted = unnest("counted", *campaigns.c["campaign_id", "issued"])
# The rows are locked already, so the order in which they are written does not matter.
_SAVE_ISSUED: Final = (
    sa.update(campaigns)
    .values(issued=_counted.c.issued)
    .where(campaigns.c.campaign_id == _counted.c.campaign_id)
)


async def add_campaigns(
    connection: AsyncConnection, created: Sequence[tuple[Campaign, str]]
) -> None:
    """Insert new campaigns, each with the request_id of its CreateCampaign."""
    if not created:
        return
    rows = [
        asdict(campaign) | asdict(campaign.terms) | {"request_id": request_id}
        for campaign, request_id in created
    ]
    await connection.execute(_ADD, arrays(_added, rows))


async def lock_campaigns(
    connection: AsyncConnection, wanted: Collection[str], *, wait_for_locks: bool
) -> tuple[dict[str, Campaign], frozenset[str]]:
    """Lock the wanted campaigns; returns them, and the ids of those that are blocked."""
    found = await _CAMPAIGNS.lock(connection, wanted, wait_for_locks=wait_for_locks)
    return {row.campaign_id: to_campaign(row) for row in found.rows}, found.blocked


async def save_issued(connection: AsyncConnection, changed: Sequence[Campaign]) -> None:
    """Write how many coupons of these locked campaigns have been issued."""
    if changed:
        await connection.execute(_SAVE_ISSUED, arrays(_counted, changed))


# -- reads ---------------------------------------------------------------------------------------

_read = sa.select(campaigns, CLOCK.label("now"))
_ONE: Final = _read.where(campaigns.c.campaign_id == sa.bindparam("campaign_id"))
_NEWEST: Final = newest_first(_read, campaigns.c.create_time, campaigns.c.campaign_id)


async def read_campaign(connection: AsyncConnection, campaign_id: str) -> Campaign | None:
    """One campaign as last committed."""
    row = (await connection.execute(_ONE, {"campaign_id": campaign_id})).one_or_none()
    return None if row is None else to_campaign(row)


async def read_campaigns(
    connection: AsyncConnection, *, before: TimePosition, size: int
) -> list[Campaign]:
    """At most ``size`` campaigns that were created before the position, newest first."""
    rows = await connection.execute(_NEWEST, at_most(size, before=before))
    return [to_campaign(row) for row in rows]


def to_campaign(row: sa.Row[Any]) -> Campaign:
    """The campaign in a row that has its columns and the clock."""
    return from_row(Campaign, row, terms=from_row(Terms, row), as_of=row.now)
