"""The unlocked look before a coupon is issued: one statement for everyone who asks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.idempotency import Record
from common.db.unnest import arrays, unnest
from common.ids import is_id
from coupon_service.model.campaigns import Campaign, IssueCoupon
from coupon_service.model.coupons import Coupon
from coupon_service.store.campaigns import to_campaign
from coupon_service.store.coupons import to_coupon
from coupon_service.tables import answers, campaigns, coupons


@dataclass(frozen=True, slots=True)
class Glance:
    """What was committed about a command at one moment: all three in one snapshot."""

    campaign: Campaign | None
    coupon: Coupon | None
    """The user's coupon of the campaign."""
    answer: Record | None


_PREFIX: Final = "of_campaign_"
_asked = unnest(
    "asked", campaign_id=campaigns.c.campaign_id.type, user_id=sa.Text, request_id=sa.Text
)
_columns: list[sa.ColumnElement[Any]] = [
    _asked.c.user_id.label("asked_user_id"),
    _asked.c.request_id.label("asked_request_id"),
    _asked.c.campaign_id.label("asked_campaign_id"),
    *(column.label(_PREFIX + column.name) for column in campaigns.c),
    *coupons.c,
    answers.c.state,
    answers.c.digest,
    answers.c.body,
    sa.func.clock_timestamp(type_=coupons.c.issue_time.type).label("now"),
]
_GLANCE: Final = sa.select(*_columns).select_from(
    _asked.outerjoin(campaigns, campaigns.c.campaign_id == _asked.c.campaign_id)
    .outerjoin(
        coupons,
        sa.and_(
            coupons.c.campaign_id == _asked.c.campaign_id, coupons.c.user_id == _asked.c.user_id
        ),
    )
    .outerjoin(
        answers,
        sa.and_(
            answers.c.method == sa.literal("IssueCoupon"),
            answers.c.scope == _asked.c.user_id,
            answers.c.request_id == _asked.c.request_id,
        ),
    )
)


async def glance(connection: AsyncConnection, commands: Sequence[IssueCoupon]) -> list[Glance]:
    """What is known about each command, in their order."""
    # What could not be an id is asked for as NULL, which is no campaign's.
    ids = [command.campaign_id if is_id(command.campaign_id) else None for command in commands]
    rows = await connection.execute(
        _GLANCE,
        arrays(
            "asked",
            campaign_id=ids,
            user_id=[command.user_id for command in commands],
            request_id=[command.request_id for command in commands],
        ),
    )
    seen = {
        (row.asked_campaign_id, row.asked_user_id, row.asked_request_id): _to_glance(row)
        for row in rows
    }
    return [
        seen[id_, command.user_id, command.request_id]
        for id_, command in zip(ids, commands, strict=True)
    ]


def _to_glance(row: sa.Row[Any]) -> Glance:
    known = row._mapping[_PREFIX + "campaign_id"] is not None  # noqa: SLF001
    return Glance(
        to_campaign(row, _PREFIX) if known else None,
        to_coupon(row) if row.coupon_id is not None else None,
        Record(row.state, row.digest, row.body) if row.digest is not None else None,
    )
