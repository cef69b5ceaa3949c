"""Coupons and their redemptions: their rows, and the events that they tell of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.ids import is_id
from deploy.why.event import Event, money, short
from deploy.why.selection import Records, Selection, newest_of, rows

SERVICE: Final = "coupon"

_COUPON: Final = """
SELECT c.coupon_id::text AS coupon_id, c.campaign_id::text AS campaign_id, c.user_id,
       c.issue_number, c.request_id, c.issue_time, c.expire_time, c.order_id,
       c.ticket_id::text AS ticket_id, k.name
  FROM coupons AS c LEFT JOIN campaigns AS k USING (campaign_id)
"""
_COUPONS: Final = sa.text(
    _COUPON
    + """
 WHERE c.coupon_id = ANY (CAST(:coupon_ids AS uuid[]))
    OR c.user_id = :user_id AND c.request_id = ANY (CAST(:request_ids AS text[]))
"""
)
_NEWEST: Final = sa.text(
    f"{_COUPON} WHERE c.user_id = :user_id ORDER BY c.issue_time DESC, c.coupon_id DESC LIMIT :size"
)
_REDEMPTION: Final = """
SELECT user_id, request_id, coupon_id::text AS coupon_id, order_id, currency_code,
       order_amount_minor, discount_minor, redeem_time, restore_request_id, restore_time
  FROM redemptions WHERE user_id = :user_id
"""
_REDEMPTIONS: Final = sa.text(
    _REDEMPTION
    + """
   AND (order_id = ANY (CAST(:order_ids AS text[]))
        OR request_id = ANY (CAST(:request_ids AS text[]))
        OR restore_request_id = ANY (CAST(:request_ids AS text[]))
        OR coupon_id = ANY (CAST(:coupon_ids AS uuid[])))
 ORDER BY redeem_time
"""
)
_NEWEST_REDEMPTIONS: Final = sa.text(f"{_REDEMPTION} ORDER BY redeem_time DESC LIMIT :size")


async def read(connection: AsyncConnection, selection: Selection, records: Records) -> None:
    """Add the selection's coupons and redemptions, and the coupons that were redeemed."""
    user_id, newest = selection.user_id, selection.newest
    coupon_ids = {coupon_id for coupon_id in selection.coupon_ids if is_id(coupon_id)}
    if newest:
        asked = {"user_id": user_id, "size": newest + 1}
        found = await rows(connection, _NEWEST_REDEMPTIONS, **asked)
        records.redemptions += newest_of(records, "redemptions", found, newest)
        found = await rows(connection, _NEWEST, **asked)
        records.coupons += newest_of(records, "coupons", found, newest)
        return
    requests = list(selection.request_ids)
    redeemed = await rows(
        connection,
        _REDEMPTIONS,
        user_id=user_id,
        order_ids=list(selection.order_ids),
        request_ids=requests,
        coupon_ids=list(coupon_ids),
    )
    records.redemptions += redeemed
    coupon_ids |= {row["coupon_id"] for row in redeemed}
    records.coupons += await rows(
        connection, _COUPONS, user_id=user_id, request_ids=requests, coupon_ids=list(coupon_ids)
    )


def events(records: Records) -> Iterator[Event]:
    """What the rows of coupons and redemptions tell of."""
    for coupon in records.coupons:
        ids = {"coupon_id": coupon["coupon_id"], "campaign_id": coupon["campaign_id"]}
        ids |= {"ticket_id": coupon["ticket_id"]} if coupon["ticket_id"] else {}
        what = f"coupon {short(coupon['coupon_id'])} issued, no. {coupon['issue_number']:,}"
        named = f"{what} of {coupon['name']}" if coupon["name"] else what
        yield Event(coupon["issue_time"], SERVICE, named, "", "→ ISSUED", ids)
    for each in records.redemptions:
        ids = {name: each[name] for name in ("coupon_id", "order_id", "request_id")}
        name = f"coupon {short(each['coupon_id'])}"
        discount = money(each["discount_minor"], each["currency_code"])
        redeemed = f"{name} redeemed, order {short(each['order_id'])}"
        yield Event(each["redeem_time"], SERVICE, redeemed, discount, "ISSUED → REDEEMED", ids)
        if each["restore_time"] is not None:
            ids |= {"request_id": each["restore_request_id"]}
            yield Event(
                each["restore_time"],
                SERVICE,
                f"{name} restored",
                discount,
                "REDEEMED → ISSUED",
                ids,
            )
