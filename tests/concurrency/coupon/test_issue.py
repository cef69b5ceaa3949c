"""Coupons before a crowd: exactly as many as there are, and one a user.

Every race has its control: the same calls with the guard taken away from outside must do the damage
that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from common.db import idempotency
from coupon_service.store import coupons
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupon_crowd import (
    QUANTITY,
    RIVALS,
    USERS,
    Crowd,
    ask_a_hundred_times,
    drop_constraints,
    opened,
    told,
    unlock_campaigns,
)
from tests.support.coupons import campaign, get_campaign, issue
from tests.support.refusals import outcome
from tests.support.rendezvous import meet_after

CALLS_PER_USER = 2


async def sale(crowd: Crowd, campaign_id: str) -> list[Any]:
    """Everybody at once, each user by several calls of their own that meet different replicas."""

    async def one(number: int) -> Any:
        user, call = divmod(number, CALLS_PER_USER)
        request = issue(campaign_id, f"user-{user}", f"call-{call}")
        return await told(lambda: crowd.turn(number + user).IssueCoupon(request))

    return await asyncio.gather(*(one(number) for number in range(USERS * CALLS_PER_USER)))


async def assert_sold_exactly(crowd: Crowd, campaign_id: str, results: list[Any]) -> None:
    got = [result.coupon for result in results if not isinstance(result, str)]
    assert sorted(coupon.issue_number for coupon in got) == list(range(1, QUANTITY + 1))
    assert len({coupon.user_id for coupon in got}) == QUANTITY
    refusals = Counter(result for result in results if isinstance(result, str))
    assert refusals.keys() <= {"COUPON_ALREADY_ISSUED", "COUPON_SOLD_OUT"}
    assert refusals["COUPON_ALREADY_ISSUED"] == QUANTITY * (CALLS_PER_USER - 1)
    response = await crowd.stubs[1].GetCampaign(get_campaign(campaign_id))
    assert response.campaign.issued == QUANTITY
    assert response.campaign.state == pb.Campaign.STATE_SOLD_OUT
    assert crowd.number("SELECT count(*) FROM coupons") == QUANTITY


# -- first come, first served --------------------------------------------------------------------


async def test_as_many_coupons_as_there_are_one_a_user(crowd: Crowd) -> None:
    campaign_id = await opened(crowd)
    await assert_sold_exactly(crowd, campaign_id, await sale(crowd, campaign_id))


async def test_control_without_row_lock_and_constraints_too_many_are_issued(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign_id = await opened(crowd)
    unlock_campaigns(monkeypatch)
    drop_constraints(crowd)
    meeting = meet_after(monkeypatch, coupons, "find_issued")
    await sale(crowd, campaign_id)
    assert meeting.met
    assert crowd.number("SELECT count(*) FROM coupons") > QUANTITY
    assert crowd.number("SELECT count(*) - count(DISTINCT issue_number) FROM coupons") > 0


async def test_the_row_lock_alone_keeps_the_numbers_right(bare_crowd: Crowd) -> None:
    campaign_id = await opened(bare_crowd)
    drop_constraints(bare_crowd)
    await assert_sold_exactly(bare_crowd, campaign_id, await sale(bare_crowd, campaign_id))


async def test_the_constraints_alone_keep_the_numbers_right(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign_id = await opened(bare_crowd)
    unlock_campaigns(monkeypatch)
    meeting = meet_after(monkeypatch, coupons, "find_issued")
    await assert_sold_exactly(bare_crowd, campaign_id, await sale(bare_crowd, campaign_id))
    assert meeting.met


async def test_a_user_who_asks_a_hundred_times_has_one(crowd: Crowd) -> None:
    campaign_id = await opened(crowd)
    results = await ask_a_hundred_times(crowd, campaign_id)
    got = [result for result in results if not isinstance(result, str)]
    assert len(got) == 1
    assert Counter(results)["COUPON_ALREADY_ISSUED"] == RIVALS - 1
    assert got[0].coupon.issue_number == 1
    assert crowd.number("SELECT count(*) FROM coupons") == 1


async def test_control_without_row_lock_and_constraints_a_user_has_two(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign_id = await opened(crowd)
    unlock_campaigns(monkeypatch)
    drop_constraints(crowd)
    meet_after(monkeypatch, coupons, "find_issued")
    await ask_a_hundred_times(crowd, campaign_id)
    assert crowd.number("SELECT count(*) FROM coupons WHERE user_id = 'ann'") > 1


async def test_a_hundred_copies_of_one_call_have_one_answer(crowd: Crowd) -> None:
    campaign_id = await opened(crowd)
    request = issue(campaign_id, "ann", "i1")
    results = await asyncio.gather(
        *(crowd.turn(number).IssueCoupon(request) for number in range(RIVALS))
    )
    assert sum(not result.replayed for result in results) == 1
    assert len({result.coupon.SerializeToString(deterministic=True) for result in results}) == 1
    assert crowd.number("SELECT count(*) FROM coupons") == 1


async def test_control_without_answers_a_copy_is_refused(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither the stored answer nor the request_id on the coupon, a copy is a second call."""
    campaign_id = await opened(crowd)
    monkeypatch.setattr(idempotency.AnswerBook, "answer", lambda *_: None)
    request = issue(campaign_id, "ann", "i1")
    await crowd.stubs[0].IssueCoupon(request)
    crowd.sql("UPDATE coupons SET request_id = 'nobody''s'")
    assert await outcome(crowd.stubs[1].IssueCoupon(request)) == "COUPON_ALREADY_ISSUED"


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_one_request_for_two_campaigns_is_one_request(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Different rows are locked on different replicas: only the table of answers can tell."""
    ids = []
    for name in ("one", "two"):
        response = await crowd.stubs[0].CreateCampaign(campaign(name))
        ids.append(response.campaign.campaign_id)
    if not guarded:
        monkeypatch.setattr(idempotency.AnswerBook, "save", nothing)
    meeting = meet_after(monkeypatch, coupons, "find_issued")
    results = await asyncio.gather(
        *(
            outcome(stub.IssueCoupon(issue(campaign_id, "ann", "i1")))
            for stub, campaign_id in zip(crowd.stubs, ids, strict=False)
        )
    )
    assert meeting.met
    refusals = [result for result in results if isinstance(result, str)]
    assert refusals == (["REQUEST_ID_REUSED"] if guarded else [])
    assert crowd.number("SELECT count(*) FROM coupons") == (1 if guarded else 2)


@pytest.mark.parametrize("guard", ["answers", "constraint", "none"])
async def test_a_hundred_copies_create_one_campaign(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """Either guard alone suffices; without both there are many."""
    if guard != "answers":
        monkeypatch.setattr(idempotency.AnswerBook, "answer", lambda *_: None)
    if guard != "constraint":
        crowd.sql("ALTER TABLE campaigns DROP CONSTRAINT campaigns_request_once")
    request = campaign("c1")
    results = await asyncio.gather(
        *(outcome(crowd.turn(number).CreateCampaign(request)) for number in range(RIVALS))
    )
    got = [result for result in results if not isinstance(result, str)]
    made = crowd.number("SELECT count(*) FROM campaigns")
    if guard == "none":
        assert made == RIVALS
        return
    assert made == 1
    assert sum(not result.replayed for result in got) == 1
    # Without its stored answer a copy cannot be answered, only refused.
    refusals = Counter(result for result in results if isinstance(result, str))
    assert refusals == ({"REQUEST_ID_REUSED": RIVALS - 1} if guard == "constraint" else {})


async def nothing(*_: Any) -> None:
    """In place of writing answers."""
