"""BatchIssueCoupons as a client sees it: each user by itself, in order, and repeated whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.coupons import HOUR, batch_issue, campaign, issue
from tests.support.crowd import without_redis
from tests.support.orders import UNKNOWN_ID
from tests.support.refusals import reason_of, refused

USERS = [f"u{number}" for number in range(300)]


async def campaign_id_of(coupon: Any, **fields: Any) -> str:
    return str((await coupon.CreateCampaign(campaign(**fields))).campaign.campaign_id)


async def results_of(
    coupon: Any, campaign_id: str, user_ids: Sequence[str], request_id: str = "i1"
) -> list[Any]:
    response = await coupon.BatchIssueCoupons(batch_issue(campaign_id, user_ids, request_id))
    return list(response.results)


async def test_each_user_gets_a_coupon_in_the_order_of_the_items(coupon: Any) -> None:
    campaign_id = await campaign_id_of(coupon, quantity=1_000)
    results = await results_of(coupon, campaign_id, USERS)
    assert [each.coupon.user_id for each in results] == USERS
    assert [each.coupon.issue_number for each in results] == list(range(1, 301))
    assert not any(each.replayed for each in results)
    # A single call and an item are the same request.
    single = await coupon.IssueCoupon(issue(campaign_id, "u7", "i1"))
    assert (single.coupon, single.replayed) == (results[7].coupon, True)
    again = await results_of(coupon, campaign_id, USERS)
    assert [each.coupon for each in again] == [each.coupon for each in results]
    assert all(each.replayed for each in again)


async def test_of_too_many_users_the_later_are_refused_and_the_earlier_replayed(
    coupon: Any,
) -> None:
    campaign_id = await campaign_id_of(coupon, quantity=200)
    for replayed in (False, True):
        results = await results_of(coupon, campaign_id, USERS)
        issued, refused_ = results[:200], results[200:]
        assert {each.replayed for each in issued} == {replayed}
        assert {reason_of(each.error) for each in refused_} == {"COUPON_SOLD_OUT"}
    # COUPON_ALREADY_ISSUED is told before COUPON_SOLD_OUT.
    first, last = await results_of(coupon, campaign_id, ["u0", "u299"], "other")
    assert reason_of(first.error) == "COUPON_ALREADY_ISSUED"
    assert reason_of(last.error) == "COUPON_SOLD_OUT"


async def test_bad_items_are_refused_alone(coupon: Any) -> None:
    campaign_id = await campaign_id_of(coupon)
    results = await results_of(coupon, campaign_id, ["ann", "a b", "bob", "ann", ""])
    reasons = [reason_of(each.error) for each in results]
    assert reasons == ["", "INVALID_FIELD", "", "", "INVALID_FIELD"]
    assert results[3].coupon == results[0].coupon
    assert results[3].replayed != results[0].replayed


@without_redis
async def test_what_concerns_all_items_refuses_the_call(coupon: Any) -> None:
    campaign_id = await campaign_id_of(coupon)
    for unknown in (UNKNOWN_ID, "nonsense"):
        with refused("CAMPAIGN_NOT_FOUND"):
            await results_of(coupon, unknown, ["ann"])
    for count in (0, 1_001):
        with refused("INVALID_FIELD", field="items"):
            await results_of(coupon, campaign_id, ["ann"] * count)
    with refused("INVALID_FIELD", field="campaign_id"):
        await results_of(coupon, "", ["ann"])


@without_redis
async def test_items_of_a_campaign_that_has_not_begun_are_refused(coupon: Any) -> None:
    campaign_id = await campaign_id_of(coupon, starts_in=HOUR, ends_in=2 * HOUR)
    results = await results_of(coupon, campaign_id, ["ann", "bob"])
    assert [reason_of(each.error) for each in results] == ["CAMPAIGN_NOT_OPEN"] * 2
