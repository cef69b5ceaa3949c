"""Issue from shares over four replicas: exactly the quantity, and one coupon for each user.

Every race has its control: without the guard, the same calls must do the damage that it prevents.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from common.ids import new_id
from common.metrics import REGISTRY
from coupon_service.settings import CouponSettings
from coupon_service.store import coupon as store
from coupon_service.store import share as share_store
from coupon_service.tables import USER_ONCE
from coupon_service.wiring import build
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.coupons import (
    adding_coupon,
    batch_issue,
    drop_share_constraints,
    forget_share_locks,
    get_campaign,
    issue,
    open_campaign,
)
from tests.support.crowd import RIVALS, Crowd, crowd_fixture, without_redis
from tests.support.refusals import Results, reason_of
from tests.support.rendezvous import meet_after

crowd = crowd_fixture(
    "coupon", CouponServiceStub, CouponSettings, build, count=4, max_concurrent_calls=10_000
)

QUANTITY = 100
USERS = 3 * QUANTITY
SHARES = 8
CONTROL_RACES = 20


async def sale(crowd: Crowd[Any], campaign_id: str, *, calls_per_user: int = 1) -> Results:
    """All users at once. The calls of one reach different replicas."""
    return await crowd.race(
        "IssueCoupon",
        [
            issue(campaign_id, f"user-{user}", f"call-{call}")
            for user in range(USERS)
            for call in range(calls_per_user)
        ],
        until_final=True,
    )


async def assert_sold_exactly(
    crowd: Crowd[Any], campaign_id: str, results: Results, *, calls_per_user: int = 1
) -> None:
    issued = [response.coupon for response in results.responses]
    assert sorted(coupon.issue_number for coupon in issued) == list(range(1, QUANTITY + 1))
    assert len({coupon.user_id for coupon in issued}) == QUANTITY
    refusals = {"COUPON_SOLD_OUT": (USERS - QUANTITY) * calls_per_user}
    if calls_per_user > 1:
        refusals["COUPON_ALREADY_ISSUED"] = QUANTITY * (calls_per_user - 1)
    assert results.refusals == refusals
    response = await crowd.turn(1).GetCampaign(get_campaign(campaign_id))
    assert response.campaign.issued == QUANTITY
    assert response.campaign.state == pb.Campaign.STATE_SOLD_OUT
    assert crowd.number("SELECT count(*) FROM coupons") == QUANTITY
    assert crowd.number("SELECT sum(issued) FROM campaign_shares") == QUANTITY


@pytest.mark.parametrize("shares", [2, 64])
async def test_sale_from_shares_issues_exactly_the_quantity_one_per_user(
    crowd: Crowd[Any], shares: int
) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY, shares=shares)
    results = await sale(crowd, campaign_id, calls_per_user=2)
    await assert_sold_exactly(crowd, campaign_id, results, calls_per_user=2)


@without_redis
@pytest.mark.parametrize("guard", ["row lock", "constraints", "none"])
async def test_each_guard_alone_issues_exactly_the_quantity_of_shares(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY, shares=2)
    if guard != "constraints":
        drop_share_constraints(crowd)
    if guard != "row lock":
        forget_share_locks(monkeypatch)
        meeting = meet_after(monkeypatch, share_store, "draw_free")
    results = await sale(crowd, campaign_id)
    assert guard == "row lock" or meeting.met
    if guard == "none":
        assert crowd.number("SELECT count(*) FROM coupons") > QUANTITY
        assert crowd.number("SELECT count(*) - count(DISTINCT issue_number) FROM coupons") > 0
    else:
        await assert_sold_exactly(crowd, campaign_id, results)


async def race_of_one_user(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Results]:
    """A hundred calls of one user, of which two draw at once: how many coupons, and results."""
    campaign_id = await open_campaign(crowd.turn(0), new_id(), quantity=QUANTITY, shares=SHARES)
    meeting = meet_after(monkeypatch, share_store, "draw_free")
    requests = [issue(campaign_id, "ann", f"{campaign_id}-{number}") for number in range(RIVALS)]
    results = await crowd.race("IssueCoupon", requests, until_final=True)
    assert meeting.met
    return crowd.number(
        f"SELECT count(*) FROM coupons WHERE campaign_id = '{campaign_id}'"
    ), results


async def test_hundred_calls_of_one_user_at_four_shares_get_one_coupon(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replicas lock different shares: only the constraint makes them meet."""
    issued, (responses, refusals) = await race_of_one_user(crowd, monkeypatch)
    assert len(responses) == issued == 1
    assert refusals == {"COUPON_ALREADY_ISSUED": RIVALS - 1}
    # What the losers had counted was rolled back.
    assert crowd.number("SELECT sum(issued) FROM campaign_shares") == 1


async def test_control_without_the_constraint_a_user_gets_several_coupons(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd.sql(f"ALTER TABLE coupons DROP CONSTRAINT {USER_ONCE}")
    # One of the two may commit before the other one looks for the user's coupon.
    for _ in range(CONTROL_RACES):
        issued, _ = await race_of_one_user(crowd, monkeypatch)
        if issued > 1:
            return
    pytest.fail(f"one coupon each in {CONTROL_RACES} races")


def contention() -> float:
    """Deadlocks of the lane so far, of all replicas."""
    labels = {"lane": "issue_from_share", "fault": "contention"}
    return REGISTRY.get_sample_value("tally_lane_faults_total", labels) or 0.0


@without_redis
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_the_same_users_in_opposite_orders_do_not_deadlock(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Both wait in the middle until a third transaction, which has that user, rolls back."""
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY, shares=SHARES)
    if not guarded:
        monkeypatch.setattr(store, "_ADD_SORTED", store._ADD_COUPONS)
    users = [f"user-{user}" for user in range(10, 60)]
    before = contention()
    meeting = meet_after(monkeypatch, share_store, "draw_free")
    third = await asyncpg.connect(crowd.urls.runtime)
    transaction = third.transaction()
    await transaction.start()
    await third.execute(adding_coupon(campaign_id, "user-35"))
    bulk = asyncio.gather(
        crowd.turn(0).BatchIssueCoupons(batch_issue(campaign_id, users, "i1")),
        crowd.turn(1).BatchIssueCoupons(batch_issue(campaign_id, users[::-1], "i2")),
    )
    while await third.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await transaction.rollback()
    await third.close()
    responses = await bulk
    assert meeting.met
    assert (contention() > before) is not guarded
    # In both cases each user has one coupon, and one refusal.
    reasons = [reason_of(each.error) for response in responses for each in response.results]
    assert sorted(reasons) == [""] * 50 + ["COUPON_ALREADY_ISSUED"] * 50
    assert crowd.number("SELECT count(*) FROM coupons") == 50


async def test_bulk_calls_of_four_replicas_issue_exactly_the_quantity(crowd: Crowd[Any]) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY, shares=SHARES)
    users = [f"user-{user}" for user in range(USERS)]

    async def final(turn: int) -> list[str]:
        while True:
            response = await crowd.turn(turn).BatchIssueCoupons(batch_issue(campaign_id, users))
            if not any("RetryInfo" in str(each.error) for each in response.results):
                return [each.coupon.coupon_id or reason_of(each.error) for each in response.results]

    outcomes = await asyncio.gather(*map(final, range(4)))
    assert outcomes == [outcomes[0]] * 4, "all duplicates have the same outcome for each user"
    assert outcomes[0].count("COUPON_SOLD_OUT") == USERS - QUANTITY
    numbers = crowd.sql("SELECT string_agg(issue_number::text, ' ' ORDER BY 1) FROM coupons")
    assert sorted(map(int, numbers.split())) == list(range(1, QUANTITY + 1))
