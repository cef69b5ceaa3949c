"""SQL for tickets: lock and count their campaigns, find the coupons that were issued by them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from common.db.row_locks import CLOCK, AlsoRead, Locked, RowLocks
from common.db.statements import Connection, Row
from common.db.unnest import arrays, arrays_of_tuples, same, unnest
from common.db.writes import Write
from coupon_service.model.coupon import Coupon
from coupon_service.model.ticket import QueuedCampaign
from coupon_service.store.campaign import to_campaign
from coupon_service.store.coupon import to_coupon
from coupon_service.tables import campaigns, coupons

_CAMPAIGNS: Final[RowLocks[str]] = RowLocks(campaigns, "campaign_id")
_COUNTS: Final = ("issued", "issued_by_ticket", "queue_fence")

_counted = unnest("counted", *campaigns.c[("campaign_id", *_COUNTS)])
# The rows are locked already, so the order in which they are written does not matter. The fence is
# compared once more: without the row's lock, a later consumer may have written its own meanwhile.
_SAVE: Final = (
    sa.update(campaigns)
    .values({name: _counted.c[name] for name in _COUNTS})
    .where(same(campaigns, _counted, ["campaign_id"]))
    .where(campaigns.c.queue_fence <= _counted.c.queue_fence)
)

_wanted = unnest("wanted", coupons.c.ticket_id, position=sa.BigInteger)
# LIMIT lets each ticket be looked up by itself: the index has coupons with tickets only, so that a
# join may read all of it, if there were few when it was planned.
_of_ticket = (
    sa.select(coupons)
    .where(coupons.c.ticket_id == _wanted.c.ticket_id)
    .limit(1)
    .lateral("of_ticket")
)
_FIND: Final = (
    sa.select(_of_ticket, CLOCK.label("now"))
    .select_from(_wanted.outerjoin(_of_ticket, sa.true()))
    .order_by(_wanted.c.position)
)


@dataclass(frozen=True, slots=True)
class TicketCoupon:
    """The coupon that carries a ticket, as last committed."""

    coupon: Coupon | None
    now: datetime
    """The database's clock."""


async def lock_campaigns(
    connection: Connection,
    campaign_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[str, QueuedCampaign]:
    """Lock the campaigns (``RowLocks``)."""
    locked = await _CAMPAIGNS.lock(
        connection, campaign_ids, wait_for_locks=wait_for_locks, also=also
    )
    return locked.map(_to_campaign)


def saving_issued(changed: Sequence[QueuedCampaign]) -> list[Write]:
    """The write of how many coupons of these campaigns were issued, and the consumer's fence.

    Too few rows are changed if a later consumer has written a campaign since it was read.
    """
    rows = [
        {
            "campaign_id": one.campaign.campaign_id,
            "issued": one.campaign.issued,
            "issued_by_ticket": one.issued_by_ticket,
            "queue_fence": one.queue_fence,
        }
        for one in changed
    ]
    return [Write(_SAVE, arrays(_counted, rows), len(rows))] if rows else []


async def find_issued(connection: Connection, ticket_ids: Sequence[str]) -> list[TicketCoupon]:
    """The coupons that carry these tickets, in their order."""
    asked = [(ticket_id, position) for position, ticket_id in enumerate(ticket_ids)]
    rows = await connection.execute(_FIND, arrays_of_tuples(_wanted, asked))
    return [
        TicketCoupon(None if row.coupon_id is None else to_coupon(row), row.now) for row in rows
    ]


def _to_campaign(row: Row) -> QueuedCampaign:
    return QueuedCampaign(to_campaign(row), row.issued_by_ticket, row.queue_fence)
