"""SQL for shares: create them, draw from them, count what they have issued."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from common.db.row_locks import CLOCK
from common.db.rows import from_row
from common.db.statements import Connection, Row
from common.db.unnest import arrays, insert_from, same, unnest
from common.db.writes import Write
from coupon_service.model.share import Drawn, Share
from coupon_service.store.campaign import to_campaign
from coupon_service.tables import campaign_shares, campaigns


class Place(NamedTuple):
    """A place in the round of a campaign's shares, which begins with the share ``start``."""

    start: int
    after: int
    """Shares up to this position of the round are passed over; -1: none is."""


_added = unnest("share", *campaign_shares.c)
_ADD: Final = insert_from(campaign_shares, _added, ["campaign_id", "share"])

_asked = unnest("asked", campaign_shares.c.campaign_id, start=sa.BigInteger, after=sa.BigInteger)
_left = campaign_shares.c.issued < campaign_shares.c.quantity


def _draw(*, skip_locked: bool) -> sa.Select[tuple[object, ...]]:
    """The campaigns that are asked for, each with the next share that has a coupon left, locked.

    A share that was locked elsewhere is skipped, or waited for and looked at again: shares are
    then locked in ascending order, if the round begins with the first.
    """
    position = sa.func.mod(
        campaign_shares.c.share - _asked.c.start + campaigns.c.shares, campaigns.c.shares
    )
    of_campaign = campaign_shares.c.campaign_id == campaigns.c.campaign_id
    next_ = (
        sa.select(campaign_shares)
        .where(of_campaign, _left, position > _asked.c.after)
        .order_by(position)
        .limit(1)
        .with_for_update(of=campaign_shares, key_share=True, skip_locked=skip_locked)
        .correlate(_asked, campaigns)
        .lateral("next")
    )
    # Counted: the planner may answer EXISTS from a hash of the whole table.
    with_any = (
        sa.select(sa.func.count())
        .select_from(campaign_shares)
        .where(of_campaign, _left)
        .correlate(campaigns)
        .scalar_subquery()
    )
    drawn = (
        sa.select(
            # ``issued`` is 0: what was issued from all shares is not needed here.
            *campaigns.c,
            next_.c.share,
            next_.c.first_number,
            next_.c.quantity.label("share_quantity"),
            next_.c.issued.label("share_issued"),
            # As committed when the statement began. A share that is empty stays empty.
            sa.case((next_.c.share.is_(None), with_any == 0), else_=False).label("sold_out"),
        )
        .select_from(_asked)
        .join(campaigns, same(campaigns, _asked, ["campaign_id"]))
        .outerjoin(next_, sa.true())
        .cte("drawn")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    # The clock is read outside the CTE, when the rows are locked.
    return sa.select(drawn, CLOCK.label("now"))


_DRAW_FREE: Final = _draw(skip_locked=True)
_DRAW: Final = _draw(skip_locked=False)

_counted = unnest("counted", *campaign_shares.c["campaign_id", "share", "issued"])
# The rows are locked already, so the order in which they are written does not matter.
_SAVE_ISSUED: Final = (
    sa.update(campaign_shares)
    .values(issued=_counted.c.issued)
    .where(same(campaign_shares, _counted, ["campaign_id", "share"]))
)


def adding(shares: Sequence[Share]) -> list[Write]:
    """The write of new shares."""
    return [Write(_ADD, arrays(_added, shares), len(shares))] if shares else []


async def draw_free(connection: Connection, places: Mapping[str, Place]) -> dict[str, Drawn]:
    """Lock the next share with a coupon left of each campaign; it waits for none.

    A campaign without one has all of its shares locked elsewhere, if it is not sold out.
    """
    return _drawn(await connection.execute(_DRAW_FREE, _parameters(places)))


async def draw(connection: Connection, campaign_ids: Iterable[str]) -> dict[str, Drawn]:
    """Lock the lowest share with a coupon left of each campaign; wait for it, up to lock_timeout.

    A campaign without one is sold out: every share was empty, or was waited for and is empty. The
    transaction must not have locked a share before.
    """
    places = {campaign_id: Place(start=0, after=-1) for campaign_id in campaign_ids}
    found = _drawn(await connection.execute(_DRAW, _parameters(places)))
    for drawn in found.values():
        drawn.sold_out = not drawn.shares
    return found


def saving_issued(changed: Sequence[Share]) -> list[Write]:
    """The write of how many coupons of these locked shares have been issued."""
    return [Write(_SAVE_ISSUED, arrays(_counted, changed), len(changed))] if changed else []


def _parameters(places: Mapping[str, Place]) -> dict[str, str]:
    return arrays(
        _asked,
        [
            {"campaign_id": campaign_id, "start": place.start, "after": place.after}
            for campaign_id, place in sorted(places.items())
        ],
    )


def _drawn(rows: Iterable[Row]) -> dict[str, Drawn]:
    return {row.campaign_id: Drawn(to_campaign(row), _shares_of(row), row.sold_out) for row in rows}


def _shares_of(row: Row) -> list[Share]:
    if row.share is None:
        return []
    return [from_row(Share, row, quantity=row.share_quantity, issued=row.share_issued)]
