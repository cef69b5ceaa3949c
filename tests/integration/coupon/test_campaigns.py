"""Campaigns, the issue of their coupons, and both lists, as a client sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.balances import won
from tests.support.coupons import (
    HOUR,
    campaign,
    get_campaign,
    get_coupon,
    issue,
    issued,
    open_campaign,
)
from tests.support.orders import UNKNOWN_ID
from tests.support.pages import pages_of
from tests.support.refusals import refused


async def test_campaign_is_created_once_and_read_back(coupon: Any) -> None:
    request = campaign(max_discount=won(900), min_order_amount=won(2_000), quantity=7)
    first = await coupon.CreateCampaign(request)
    assert not first.replayed
    assert first.campaign.state == pb.Campaign.STATE_OPEN
    assert first.campaign.fixed_discount == won(1_000)
    assert first.campaign.max_discount == won(900)
    assert first.campaign.min_order_amount == won(2_000)
    assert (first.campaign.quantity, first.campaign.issued) == (7, 0)
    assert first.campaign.start_time == request.start_time
    assert first.campaign.end_time == request.end_time
    assert first.campaign.coupon_lifetime == request.coupon_lifetime
    again = await coupon.CreateCampaign(request)
    assert (again.replayed, again.campaign) == (True, first.campaign)
    got = await coupon.GetCampaign(get_campaign(first.campaign.campaign_id))
    assert got.campaign == first.campaign


async def test_percentage_without_amounts_has_no_currency(coupon: Any) -> None:
    response = await coupon.CreateCampaign(campaign(percent_discount=15))
    assert response.campaign.percent_discount == 15
    assert response.campaign.WhichOneof("discount") == "percent_discount"
    assert not response.campaign.HasField("max_discount")


async def test_campaign_state_follows_the_clock_and_the_count(coupon: Any) -> None:
    states: dict[str, tuple[dict[str, Any], int]] = {
        "scheduled": ({"starts_in": HOUR, "ends_in": 2 * HOUR}, pb.Campaign.STATE_SCHEDULED),
        "open": ({}, pb.Campaign.STATE_OPEN),
        "ended": ({"starts_in": -2 * HOUR, "ends_in": -HOUR}, pb.Campaign.STATE_ENDED),
    }
    for name, (fields, state) in states.items():
        made = (await coupon.CreateCampaign(campaign(name, **fields))).campaign
        assert made.state == state
        if state != pb.Campaign.STATE_OPEN:
            with refused("CAMPAIGN_NOT_OPEN") as ended:
                await coupon.IssueCoupon(issue(made.campaign_id, "ann"))
            assert ended.refusal.metadata["campaign_id"] == made.campaign_id
    last = await open_campaign(coupon, "one", quantity=1)
    await coupon.IssueCoupon(issue(last, "ann"))
    got = await coupon.GetCampaign(get_campaign(last))
    assert (got.campaign.state, got.campaign.issued) == (pb.Campaign.STATE_SOLD_OUT, 1)


async def test_lists_are_paged_newest_first(coupon: Any) -> None:
    coupons = [await issued(coupon, request_id=f"c{number}") for number in range(5)]
    await issued(coupon, user_id="bob", request_id="of-bob")

    campaigns = await pages_of(coupon.ListCampaigns, pb.ListCampaignsRequest(page_size=2))
    ids = [one.campaign_id for page in campaigns for one in page]
    assert ids[1:] == [one.campaign_id for one in reversed(coupons)]
    of_ann = pb.ListCouponsRequest(user_id="ann", page_size=2)
    newest = coupons[::-1]
    assert await pages_of(coupon.ListCoupons, of_ann) == [newest[:2], newest[2:4], newest[4:]]
    assert not (await coupon.ListCoupons(pb.ListCouponsRequest(user_id="cid"))).coupons


async def test_coupons_are_numbered_in_order_of_arrival(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, quantity=3)
    for number, user_id in enumerate(["ann", "bob", "cid"], start=1):
        response = await coupon.IssueCoupon(issue(campaign_id, user_id))
        assert not response.replayed
        assert response.coupon.issue_number == number
        assert response.coupon.state == pb.Coupon.STATE_ISSUED
        assert response.coupon.user_id == user_id
        assert response.coupon.campaign_id == campaign_id
        lived = response.coupon.expire_time.ToDatetime() - response.coupon.issue_time.ToDatetime()
        assert lived == HOUR
        got = await coupon.GetCoupon(get_coupon(response.coupon.coupon_id, user_id))
        assert got.coupon == response.coupon


async def test_second_call_is_refused_as_issued_even_when_sold_out(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, quantity=1)
    first = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    for _ in range(2):
        with refused("COUPON_ALREADY_ISSUED") as ended:
            await coupon.IssueCoupon(issue(campaign_id, "ann", "i2"))
        assert ended.refusal.metadata["coupon_id"] == first.coupon.coupon_id
    with refused("COUPON_SOLD_OUT") as ended:
        await coupon.IssueCoupon(issue(campaign_id, "bob"))
    assert ended.refusal.retry_after_s is None
    assert ended.refusal.quota[0].subject == f"campaign:{campaign_id}"
    # A repetition of the call that got the coupon is replayed, of this campaign only.
    again = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    assert (again.replayed, again.coupon) == (True, first.coupon)
    with refused("REQUEST_ID_REUSED"):
        await coupon.IssueCoupon(issue(UNKNOWN_ID, "ann", "i1"))


async def test_refusal_is_not_stored(coupon: Any, sql: Callable[[str], str]) -> None:
    campaign_id = await open_campaign(coupon, starts_in=HOUR, ends_in=2 * HOUR)
    with refused("CAMPAIGN_NOT_OPEN"):
        await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    sql("UPDATE campaigns SET start_time = now() - interval '1 hour'")
    response = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    assert not response.replayed


async def test_issue_is_replayed_after_the_end_and_without_its_record(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    campaign_id = await open_campaign(coupon)
    first = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    sql("UPDATE campaigns SET end_time = start_time + interval '1 second'")
    sql("UPDATE coupons SET redeem_request_id = 'r', order_id = 'o', redeem_time = now()")
    for clean_up in ("SELECT 1", "DELETE FROM answers"):
        sql(clean_up)
        again = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
        assert (again.replayed, again.coupon) == (True, first.coupon)
    with refused("COUPON_ALREADY_ISSUED"):
        await coupon.IssueCoupon(issue(campaign_id, "ann", "i2"))
    with refused("CAMPAIGN_NOT_OPEN"):
        await coupon.IssueCoupon(issue(campaign_id, "bob", "i1"))
