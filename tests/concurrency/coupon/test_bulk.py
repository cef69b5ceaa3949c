"""Bulk issue beside itself and single calls: exactly the quantity, and one coupon for a user."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coupon_service.store import coupon as store
from tests.support.coupons import batch_issue, drop_issue_constraints, issue, open_campaign
from tests.support.crowd import Crowd, without_redis
from tests.support.guards import forget_row_locks
from tests.support.refusals import reason_of
from tests.support.rendezvous import meet_after

QUANTITY = 200
USERS = [f"user-{number}" for number in range(300)]


async def four_duplicates_and_single_calls(crowd: Crowd[Any], campaign_id: str) -> list[Any]:
    """The responses of the bulk calls. Half of the users call by themselves as well."""

    async def final(turn: int) -> Any:
        while True:
            response = await crowd.turn(turn).BatchIssueCoupons(batch_issue(campaign_id, USERS))
            if not any("RetryInfo" in str(result.error) for result in response.results):
                return response

    singles = [issue(campaign_id, user_id) for user_id in USERS[::2]]
    bulk, _ = await asyncio.gather(
        asyncio.gather(*map(final, range(4))), crowd.race("IssueCoupon", singles, until_final=True)
    )
    return list(bulk)


async def test_duplicates_and_single_calls_issue_exactly_the_quantity(crowd: Crowd[Any]) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY)
    bulk = await four_duplicates_and_single_calls(crowd, campaign_id)
    assert crowd.number("SELECT count(*) FROM coupons") == QUANTITY
    outcomes = {
        tuple(each.coupon.coupon_id or reason_of(each.error) for each in response.results)
        for response in bulk
    }
    assert len(outcomes) == 1, "all duplicates have the same outcome for each user"
    [outcome] = outcomes
    assert outcome.count("COUPON_SOLD_OUT") == len(USERS) - QUANTITY
    for place, user_id in enumerate(USERS):
        decided_once = sum(not each.results[place].replayed for each in bulk)
        assert decided_once <= 1 or outcome[place] == "COUPON_SOLD_OUT", user_id


@without_redis
async def test_control_without_guards_more_are_issued(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_row_locks(monkeypatch)
    drop_issue_constraints(crowd)
    campaign_id = await open_campaign(crowd.turn(0), quantity=QUANTITY)
    meeting = meet_after(monkeypatch, store, "find_issued")
    calls = [
        batch_issue(campaign_id, [f"{turn}-{user_id}" for user_id in USERS]) for turn in range(2)
    ]
    await crowd.race("BatchIssueCoupons", calls)
    assert meeting.met
    assert crowd.number("SELECT count(*) FROM coupons") > QUANTITY
