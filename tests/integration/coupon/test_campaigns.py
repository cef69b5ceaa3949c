"""Campaigns and the issue of their coupons, as a client sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    HOUR,
    MICROSECOND,
    campaign,
    get_campaign,
    get_coupon,
    issue,
    won,
)
from tests.support.refusals import refused

NOBODYS = "01890000-0000-7000-8000-000000000000"


async def created(coupon: Any, request_id: str = "campaign", **fields: Any) -> str:
    response = await coupon.CreateCampaign(campaign(request_id, **fields))
    campaign_id: str = response.campaign.campaign_id
    return campaign_id


async def test_a_campaign_is_created_once_and_read_back(coupon: Any) -> None:
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
    assert again.replayed
    assert again.campaign == first.campaign
    got = await coupon.GetCampaign(get_campaign(first.campaign.campaign_id))
    assert got.campaign == first.campaign
    request.quantity = 8
    with refused("REQUEST_ID_REUSED"):
        await coupon.CreateCampaign(request)


async def test_a_percentage_names_no_currency_unless_an_amount_does(coupon: Any) -> None:
    response = await coupon.CreateCampaign(campaign(percent_discount=15))
    assert response.campaign.percent_discount == 15
    assert response.campaign.WhichOneof("discount") == "percent_discount"
    assert not response.campaign.HasField("max_discount")


async def test_a_campaigns_amounts_are_in_one_currency(coupon: Any) -> None:
    dollar = won(1, currency="USD")
    cases: list[dict[str, Any]] = [
        {"fixed_discount": won(1), "max_discount": dollar},
        {"fixed_discount": won(1), "min_order_amount": dollar},
        {"percent_discount": 1, "max_discount": won(1), "min_order_amount": dollar},
    ]
    for fields in cases:
        with refused("CURRENCY_MISMATCH"):
            await coupon.CreateCampaign(campaign(**fields))
    listed = await coupon.ListCampaigns(pb.ListCampaignsRequest())
    assert not listed.campaigns


async def test_times_finer_than_a_microsecond_stay_in_order_or_are_refused(coupon: Any) -> None:
    request = campaign(lifetime=MICROSECOND)
    request.start_time.CopyFrom(Timestamp(seconds=1_000, nanos=1))
    request.end_time.CopyFrom(Timestamp(seconds=1_000, nanos=999))
    with refused("INVALID_FIELD", field="end_time"):
        await coupon.CreateCampaign(request)
    request.end_time.CopyFrom(Timestamp(seconds=1_000, nanos=1_001))
    request.coupon_lifetime.CopyFrom(Duration(nanos=1))
    response = await coupon.CreateCampaign(request)
    assert response.campaign.coupon_lifetime == Duration(nanos=1_000)
    assert response.campaign.end_time == Timestamp(seconds=1_000, nanos=1_000)


async def test_a_campaigns_state_follows_the_clock_and_its_count(coupon: Any) -> None:
    states: dict[str, tuple[dict[str, Any], int]] = {
        "scheduled": ({"starts_in": HOUR, "ends_in": 2 * HOUR}, pb.Campaign.STATE_SCHEDULED),
        "open": ({}, pb.Campaign.STATE_OPEN),
        "ended": ({"starts_in": -2 * HOUR, "ends_in": -HOUR}, pb.Campaign.STATE_ENDED),
    }
    for name, (fields, state) in states.items():
        response = await coupon.CreateCampaign(campaign(name, **fields))
        assert response.campaign.state == state
        if state != pb.Campaign.STATE_OPEN:
            with refused("CAMPAIGN_NOT_OPEN") as told:
                await coupon.IssueCoupon(issue(response.campaign.campaign_id, "ann"))
            assert told.refusal is not None
            assert told.refusal.metadata["campaign_id"] == response.campaign.campaign_id
    last = await created(coupon, "one", quantity=1)
    await coupon.IssueCoupon(issue(last, "ann"))
    got = await coupon.GetCampaign(get_campaign(last))
    assert (got.campaign.state, got.campaign.issued) == (pb.Campaign.STATE_SOLD_OUT, 1)


async def test_campaigns_are_listed_in_pages_newest_first(coupon: Any) -> None:
    ids = [await created(coupon, f"c{number}") for number in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = await coupon.ListCampaigns(pb.ListCampaignsRequest(page_size=2, page_token=token))
        seen += [found.campaign_id for found in page.campaigns]
        token = page.next_page_token
        if not token:
            break
        with refused("INVALID_PAGE_TOKEN"):
            await coupon.ListCoupons(pb.ListCouponsRequest(user_id="ann", page_token=token))
    assert seen == ids[::-1]
    with refused("INVALID_PAGE_TOKEN"):
        await coupon.ListCampaigns(pb.ListCampaignsRequest(page_token="nonsense"))


async def test_there_is_no_such_campaign(coupon: Any) -> None:
    for campaign_id in (NOBODYS, NOBODYS.upper(), "nonsense", "\x00", "x" * 9_000):
        with refused("CAMPAIGN_NOT_FOUND") as told:
            await coupon.GetCampaign(get_campaign(campaign_id))
        with refused("CAMPAIGN_NOT_FOUND"):
            await coupon.IssueCoupon(issue(campaign_id, "ann"))
        assert told.refusal is not None
        known = {"campaign_id": campaign_id} if campaign_id == NOBODYS else {}
        assert told.refusal.metadata == known


async def test_coupons_are_numbered_in_order_of_arrival(coupon: Any) -> None:
    campaign_id = await created(coupon, quantity=3)
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


async def test_a_user_gets_one_and_hears_so_also_when_all_are_gone(coupon: Any) -> None:
    campaign_id = await created(coupon, quantity=1)
    first = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    for _ in range(2):
        with refused("COUPON_ALREADY_ISSUED") as told:
            await coupon.IssueCoupon(issue(campaign_id, "ann", "i2"))
        assert told.refusal is not None
        assert told.refusal.metadata["coupon_id"] == first.coupon.coupon_id
    with refused("COUPON_SOLD_OUT") as told:
        await coupon.IssueCoupon(issue(campaign_id, "bob"))
    assert told.refusal is not None
    assert told.refusal.retry_after_s is None
    assert told.refusal.quota[0].subject == f"campaign:{campaign_id}"
    # The call that got it is no second call: it hears its first answer.
    again = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    assert again.replayed
    assert again.coupon == first.coupon


async def test_a_request_id_means_one_campaign(coupon: Any) -> None:
    one, two = await created(coupon, "one"), await created(coupon, "two")
    first = await coupon.IssueCoupon(issue(one, "ann", "i1"))
    for other in (two, NOBODYS, "nonsense"):
        with refused("REQUEST_ID_REUSED"):
            await coupon.IssueCoupon(issue(other, "ann", "i1"))
    await coupon.IssueCoupon(issue(two, "ann", "i2"))
    with refused("REQUEST_ID_REUSED"):
        await coupon.IssueCoupon(issue(two, "ann", "i1"))
    second = await coupon.IssueCoupon(issue(one, "bob", "i1"))
    assert (first.coupon.issue_number, second.coupon.issue_number) == (1, 2)


async def test_a_refusal_is_not_stored(coupon: Any, sql: Callable[[str], str]) -> None:
    campaign_id = await created(coupon, starts_in=HOUR, ends_in=2 * HOUR)
    with refused("CAMPAIGN_NOT_OPEN"):
        await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    sql("UPDATE campaigns SET start_time = now() - interval '1 hour'")
    response = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    assert not response.replayed


async def test_a_first_answer_outlives_its_campaign_and_its_own_row(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    campaign_id = await created(coupon)
    first = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
    sql("UPDATE campaigns SET end_time = start_time + interval '1 second'")
    sql("UPDATE coupons SET redeem_request_id = 'r', order_id = 'o', redeem_time = now()")
    for clean_up in ("SELECT 1", "DELETE FROM answers"):
        sql(clean_up)
        again = await coupon.IssueCoupon(issue(campaign_id, "ann", "i1"))
        assert again.replayed
        assert again.coupon == first.coupon
    with refused("COUPON_ALREADY_ISSUED"):
        await coupon.IssueCoupon(issue(campaign_id, "ann", "i2"))
    with refused("CAMPAIGN_NOT_OPEN"):
        await coupon.IssueCoupon(issue(campaign_id, "bob", "i1"))
