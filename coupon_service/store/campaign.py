"""SQL for campaigns: create them, lock and count them when coupons are issued, read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa

from common.db.keyset import newest_first, rows_of
from common.db.row_locks import CLOCK, AlsoRead, Locked, RowLocks
from common.db.rows import from_row, one_per_key
from common.db.statements import Connection, Row
from common.db.unnest import arrays, arrays_of_tuples, insert_from, same, unnest
from common.db.writes import Write
from common.paging import Page
from coupon_service.model.campaign import Campaign, Terms
from coupon_service.tables import campaign_shares, campaigns

# -- writes --------------------------------------------------------------------------------------

_CAMPAIGNS: Final[RowLocks[str]] = RowLocks(campaigns, "campaign_id")

_added = unnest("added", *campaigns.c)
_ADD: Final = insert_from(campaigns, _added, ["request_id"])

_counted = unnest("counted", *campaigns.c["campaign_id", "issued"])
# The rows are locked already, so the order in which they are written does not matter.
_SAVE_ISSUED: Final = (
    sa.update(campaigns)
    .values(issued=_counted.c.issued)
    .where(same(campaigns, _counted, ["campaign_id"]))
)


def adding(created: Sequence[tuple[Campaign, str]]) -> list[Write]:
    """The write of new campaigns, each with the request_id of its CreateCampaign."""
    rows = [
        asdict(campaign)
        | asdict(campaign.terms)
        | {"request_id": request_id, "issued_by_ticket": 0, "queue_fence": 0}
        for campaign, request_id in created
    ]
    return [Write(_ADD, arrays(_added, rows), len(rows))] if rows else []


async def lock_campaigns(
    connection: Connection,
    campaign_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[str, Campaign]:
    """Lock the campaigns (``RowLocks``)."""
    locked = await _CAMPAIGNS.lock(
        connection, campaign_ids, wait_for_locks=wait_for_locks, also=also
    )
    return locked.map(to_campaign)


def saving_issued(changed: Sequence[Campaign]) -> list[Write]:
    """The write of how many coupons of these locked campaigns have been issued."""
    return [Write(_SAVE_ISSUED, arrays(_counted, changed), len(changed))] if changed else []


# -- reads ---------------------------------------------------------------------------------------

_in_shares = (
    sa.select(sa.cast(sa.func.sum(campaign_shares.c.issued), sa.BigInteger))
    .where(campaign_shares.c.campaign_id == campaigns.c.campaign_id)
    .correlate(campaigns)
    .scalar_subquery()
)
# Evaluated for campaigns with shares only; all of one statement's snapshot.
_issued = sa.case((campaigns.c.shares > 1, _in_shares), else_=campaigns.c.issued)
COLUMNS: Final[list[sa.ColumnElement[Any]]] = [
    *(column for column in campaigns.c if column.key != "issued"),
    _issued.label("issued"),
]
"""What ``to_campaign`` reads, except the clock; ``issued`` counts what was issued from shares."""

_read = sa.select(*COLUMNS, CLOCK.label("now"))
_wanted = unnest("wanted", campaigns.c.campaign_id)
_FIND: Final = _read.join_from(_wanted, campaigns, same(campaigns, _wanted))
_NEWEST: Final = newest_first(_read, campaigns.c.create_time, campaigns.c.campaign_id)


async def find_campaigns(
    connection: Connection, campaign_ids: Sequence[str]
) -> list[Campaign | Exception | None]:
    """These campaigns as last committed, in their order."""
    parameters = arrays_of_tuples(_wanted, [(campaign_id,) for campaign_id in campaign_ids])
    rows = await connection.execute(_FIND, parameters)
    return one_per_key(campaign_ids, {row.campaign_id: row for row in rows}, to_campaign)


async def read_campaigns(connection: Connection, page: Page) -> list[Campaign]:
    """The page's campaigns, newest first, and one more if there is one."""
    return [to_campaign(row) for row in await connection.execute(_NEWEST, rows_of(page))]


def to_campaign(row: Row) -> Campaign:
    """The campaign in a row that has its columns and the clock."""
    return from_row(Campaign, row, terms=from_row(Terms, row), as_of=row.now)
