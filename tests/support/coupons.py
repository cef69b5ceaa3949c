"""Requests of CouponService, the calls that tests begin with, and its guards removed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from coupon_service import tables
from coupon_service.store import coupon as store
from coupon_service.store import share as share_store
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.balances import won
from tests.support.crowd import Crowd
from tests.support.payments import until

HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)


def campaign(
    request_id: str = "campaign",
    *,
    quantity: int = 10,
    starts_in: timedelta = -HOUR,
    ends_in: timedelta = HOUR,
    lifetime: timedelta = HOUR,
    **fields: Any,
) -> pb.CreateCampaignRequest:
    """An open campaign of ten coupons of 1000 won. Times are relative to now."""
    if "percent_discount" not in fields:
        fields.setdefault("fixed_discount", won(1_000))
    now = datetime.now(UTC)
    fields |= {"start_time": now + starts_in, "end_time": now + ends_in}
    fields |= {"coupon_lifetime": lifetime, "request_id": request_id}
    return pb.CreateCampaignRequest(name="Spring", quantity=quantity, **fields)


def issue(campaign_id: str, user_id: str, request_id: str = "i1") -> pb.IssueCouponRequest:
    return pb.IssueCouponRequest(campaign_id=campaign_id, user_id=user_id, request_id=request_id)


def batch_issue(
    campaign_id: str, user_ids: Iterable[str], request_id: str = "i1"
) -> pb.BatchIssueCouponsRequest:
    """Coupons for these users, all with the same request_id, which is each user's own."""
    items = [
        pb.BatchIssueCouponsItem(user_id=user_id, request_id=request_id) for user_id in user_ids
    ]
    return pb.BatchIssueCouponsRequest(campaign_id=campaign_id, items=items)


def queue(campaign_id: str, user_id: str, request_id: str = "q1") -> pb.QueueCouponRequest:
    return pb.QueueCouponRequest(campaign_id=campaign_id, user_id=user_id, request_id=request_id)


def get_ticket(ticket: pb.Ticket) -> pb.GetTicketRequest:
    return pb.GetTicketRequest(ticket_id=ticket.ticket_id, user_id=ticket.user_id)


def watch_ticket(ticket: pb.Ticket) -> pb.WatchTicketRequest:
    return pb.WatchTicketRequest(ticket_id=ticket.ticket_id, user_id=ticket.user_id)


def redeem(
    coupon_id: str,
    user_id: str,
    request_id: str,
    *,
    order_id: str = "order-1",
    amount: int = 5_000,
    currency: str = "KRW",
) -> pb.RedeemCouponRequest:
    return pb.RedeemCouponRequest(
        coupon_id=coupon_id,
        user_id=user_id,
        order_id=order_id,
        order_amount=won(amount, currency=currency),
        request_id=request_id,
    )


def restore(
    coupon_id: str, user_id: str, redeem_request_id: str, request_id: str
) -> pb.RestoreCouponRequest:
    return pb.RestoreCouponRequest(
        coupon_id=coupon_id,
        user_id=user_id,
        redeem_request_id=redeem_request_id,
        request_id=request_id,
    )


def get_campaign(campaign_id: str) -> pb.GetCampaignRequest:
    return pb.GetCampaignRequest(campaign_id=campaign_id)


def get_coupon(coupon_id: str, user_id: str) -> pb.GetCouponRequest:
    return pb.GetCouponRequest(coupon_id=coupon_id, user_id=user_id)


async def open_campaign(client: Any, request_id: str = "campaign", **fields: Any) -> str:
    """Create a campaign; returns its id."""
    response = await client.CreateCampaign(campaign(request_id, **fields))
    return str(response.campaign.campaign_id)


async def issued(
    client: Any, user_id: str = "ann", request_id: str = "campaign", **fields: Any
) -> pb.Coupon:
    """The first coupon of a new campaign."""
    campaign_id = await open_campaign(client, request_id, **fields)
    response = await client.IssueCoupon(issue(campaign_id, user_id, request_id))
    coupon: pb.Coupon = response.coupon
    return coupon


async def decided(client: Any, ticket: pb.Ticket) -> pb.Ticket:
    """The ticket when it is issued or refused."""

    async def get() -> pb.Ticket:
        response = await client.GetTicket(get_ticket(ticket))
        found: pb.Ticket = response.ticket
        return found

    return await until(get, lambda found: found.state != pb.Ticket.STATE_WAITING)


# -- races ---------------------------------------------------------------------------------------


async def issue_to(crowd: Crowd[Any], *user_ids: str) -> list[pb.Coupon]:
    """One coupon of a new campaign for each user."""
    campaign_id = await open_campaign(crowd.turn(0), quantity=len(user_ids))
    responses, _ = await crowd.race("IssueCoupon", [issue(campaign_id, id_) for id_ in user_ids])
    by_user = {response.coupon.user_id: response.coupon for response in responses}
    return [by_user[id_] for id_ in user_ids]


def redemption_counts(crowd: Crowd[Any]) -> tuple[int, int]:
    """The number of live redemptions, and of coupons that are redeemed."""
    return (
        crowd.number("SELECT count(*) FROM redemptions WHERE restore_time IS NULL"),
        crowd.number("SELECT count(*) FROM coupons WHERE redeem_request_id IS NOT NULL"),
    )


def adding_coupon(campaign_id: str, user_id: str) -> str:
    """SQL of another transaction that adds a coupon for the user."""
    return (
        f"INSERT INTO coupons SELECT gen_random_uuid(), campaign_id, '{user_id}', 999, 'other',"
        " now(), now() + interval '1 hour' FROM campaigns"
        f" WHERE campaign_id = '{campaign_id}'"
    )


# -- removed guards ------------------------------------------------------------------------------


def drop_issue_constraints(crowd: Crowd[Any]) -> None:
    """Remove the last guard of IssueCoupon."""
    crowd.sql(
        f"ALTER TABLE coupons DROP CONSTRAINT {tables.USER_ONCE},"
        f" DROP CONSTRAINT {tables.NUMBER_ONCE};"
        f"ALTER TABLE campaigns DROP CONSTRAINT {tables.ISSUED_WITHIN_QUANTITY};"
    )


def drop_share_constraints(crowd: Crowd[Any]) -> None:
    """Remove the last guard of issue from shares."""
    drop_issue_constraints(crowd)
    crowd.sql(f"ALTER TABLE campaign_shares DROP CONSTRAINT {tables.SHARE_WITHIN_QUANTITY}")


def forget_share_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read shares where they should be locked: the second guard of issue from shares."""
    with monkeypatch.context() as patch:
        patch.setattr(sa.Select, "with_for_update", lambda select, **_: select)
        unlocked = share_store._draw(skip_locked=False)
    monkeypatch.setattr(share_store, "_DRAW_FREE", unlocked)
    monkeypatch.setattr(share_store, "_DRAW", unlocked)


def drop_redeem_constraint(crowd: Crowd[Any]) -> None:
    """Remove the last guard of RedeemCoupon."""
    crowd.sql(f"DROP INDEX {tables.LIVE_REDEMPTION_ONCE}")


def save_unconditionally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a redeemed or restored coupon without its condition: the second guard."""
    changed = store._changed
    columns = ("redeem_request_id", "order_id", "redeem_time")
    unconditional = (
        sa.update(tables.coupons)
        .values({name: changed.c[name] for name in columns})
        .where(tables.coupons.c.coupon_id == changed.c.coupon_id)
        .returning(tables.coupons.c.coupon_id)
    )
    monkeypatch.setattr(store, "_SAVE", unconditional)


def delay_second_save(monkeypatch: pytest.MonkeyPatch, *, until: asyncio.Event) -> None:
    """Let the second batch that saves coupons wait before it does."""
    original = store.save_coupons
    saves = 0

    async def delayed(*args: Any, **kwargs: Any) -> set[str]:
        nonlocal saves
        saves += 1
        if saves == 2:
            await until.wait()
        return await original(*args, **kwargs)

    monkeypatch.setattr(store, "save_coupons", delayed)
