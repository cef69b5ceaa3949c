"""Concurrent issue: exactly as many coupons as the campaign has, and one for each user.

Every race has its control: without the guard, the same calls must do the damage that it prevents.
"""

from __future__ import annotations

from typing import Any

import pytest

from coupon_service.store import coupon as store
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    campaign,
    drop_issue_constraints,
    get_campaign,
    issue,
    open_campaign,
)
from tests.support.crowd import RIVALS, Crowd, without_redis
from tests.support.guards import forget_answers, forget_records, forget_row_locks
from tests.support.refusals import Results
from tests.support.rendezvous import meet_after

QUANTITY = 100
USERS = 10 * QUANTITY
CALLS_PER_USER = 2


async def sale(crowd: Crowd[Any], campaign_id: str) -> Results:
    """All users at once. Each calls several times; the calls of one reach different replicas."""
    return await crowd.race(
        "IssueCoupon",
        [
            issue(campaign_id, f"user-{user}", f"call-{call}")
            for user in range(USERS)
            for call in range(CALLS_PER_USER)
        ],
        until_final=True,
    )


async def assert_sold_exactly(crowd: Crowd[Any], campaign_id: str, results: Results) -> None:
    issued = [response.coupon for response in results.responses]
    assert sorted(coupon.issue_number for coupon in issued) == list(range(1, QUANTITY + 1))
    assert len({coupon.user_id for coupon in issued}) == QUANTITY
    assert results.refusals == {
        "COUPON_ALREADY_ISSUED": QUANTITY * (CALLS_PER_USER - 1),
        "COUPON_SOLD_OUT": (USERS - QUANTITY) * CALLS_PER_USER,
    }
    response = await crowd.turn(1).GetCampaign(get_campaign(campaign_id))
    assert response.campaign.issued == QUANTITY
    assert response.campaign.state == pb.Campaign.STATE_SOLD_OUT
    assert crowd.number("SELECT count(*) FROM coupons") == QUANTITY


async def test_sale_issues_exactly_the_quantity_one_per_user(crowd: Crowd[Any]) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY)
    await assert_sold_exactly(crowd, campaign_id, await sale(crowd, campaign_id))


@without_redis
@pytest.mark.parametrize("guard", ["row lock", "constraints", "none"])
async def test_each_guard_alone_issues_exactly_the_quantity(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY)
    if guard != "constraints":
        drop_issue_constraints(crowd)
    if guard != "row lock":
        forget_row_locks(monkeypatch)
        meeting = meet_after(monkeypatch, store, "find_issued")
    results = await sale(crowd, campaign_id)
    assert guard == "row lock" or meeting.met
    if guard == "none":
        assert crowd.number("SELECT count(*) FROM coupons") > QUANTITY
        assert crowd.number("SELECT count(*) - count(DISTINCT issue_number) FROM coupons") > 0
    else:
        await assert_sold_exactly(crowd, campaign_id, results)


async def a_hundred_calls_of_one_user(crowd: Crowd[Any]) -> Results:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY)
    requests = [issue(campaign_id, "ann", f"call-{number}") for number in range(RIVALS)]
    return await crowd.race("IssueCoupon", requests, until_final=True)


async def test_hundred_calls_of_one_user_get_one_coupon(crowd: Crowd[Any]) -> None:
    (response,), refusals = await a_hundred_calls_of_one_user(crowd)
    assert response.coupon.issue_number == 1
    assert refusals == {"COUPON_ALREADY_ISSUED": RIVALS - 1}
    assert crowd.number("SELECT count(*) FROM coupons") == 1


@without_redis
async def test_control_without_guards_one_user_gets_two_coupons(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_row_locks(monkeypatch)
    drop_issue_constraints(crowd)
    meet_after(monkeypatch, store, "find_issued")
    await a_hundred_calls_of_one_user(crowd)
    assert crowd.number("SELECT count(*) FROM coupons WHERE user_id = 'ann'") > 1


# -- copies of one request -----------------------------------------------------------------------


async def test_hundred_copies_of_one_issue_return_one_coupon(crowd: Crowd[Any]) -> None:
    request = issue(await open_campaign(crowd.turn(0), quantity=QUANTITY), "ann", "i1")
    responses, refusals = await crowd.race("IssueCoupon", [request] * RIVALS, until_final=True)
    assert not refusals
    assert sum(not response.replayed for response in responses) == 1
    assert len({one.coupon.SerializeToString(deterministic=True) for one in responses}) == 1
    assert crowd.number("SELECT count(*) FROM coupons") == 1


@without_redis
async def test_control_without_record_and_request_id_a_copy_is_refused(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = issue(await open_campaign(crowd.turn(0), quantity=QUANTITY), "ann", "i1")
    forget_answers(monkeypatch)
    await crowd.turn(0).IssueCoupon(request)
    crowd.sql("UPDATE coupons SET request_id = 'unknown'")
    assert await crowd.call(1, "IssueCoupon", request) == "COUPON_ALREADY_ISSUED"


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_one_request_id_for_two_campaigns_issues_once(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Two replicas lock different campaigns: only the idempotency records can conflict."""
    ids = []
    for name in ("one", "two"):
        response = await crowd.turn(0).CreateCampaign(campaign(name))
        ids.append(response.campaign.campaign_id)
    if not guarded:
        forget_records(monkeypatch)
    meeting = meet_after(monkeypatch, store, "find_issued")
    _, refusals = await crowd.race(
        "IssueCoupon", [issue(id_, "ann", "i1") for id_ in ids], until_final=True
    )
    assert meeting.met
    assert refusals == ({"REQUEST_ID_REUSED": 1} if guarded else {})
    assert crowd.number("SELECT count(*) FROM coupons") == (1 if guarded else 2)


@without_redis
@pytest.mark.parametrize("guard", ["records", "constraint", "none"])
async def test_hundred_copies_create_one_campaign_with_either_guard(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    if guard != "records":
        forget_answers(monkeypatch)
    if guard != "constraint":
        crowd.sql("ALTER TABLE campaigns DROP CONSTRAINT campaigns_request_once")
    request = campaign("c1")
    responses, refusals = await crowd.race("CreateCampaign", [request] * RIVALS, until_final=True)
    created = crowd.number("SELECT count(*) FROM campaigns")
    if guard == "none":
        assert created == RIVALS
        return
    assert created == 1
    assert sum(not response.replayed for response in responses) == 1
    # Without its record a copy cannot be replayed, only refused.
    assert refusals == ({"REQUEST_ID_REUSED": RIVALS - 1} if guard == "constraint" else {})
