"""A row that another transaction locks for long delays only the commands that need it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    HOUR,
    campaign,
    get_coupon,
    issue,
    issued,
    open_campaign,
    redeem,
    restore,
)
from tests.support.databases import open_transaction
from tests.support.refusals import refused


async def test_locked_campaign_delays_only_its_own_coupons(
    coupon: Any, coupon_database: ServiceUrls
) -> None:
    locked, free = await open_campaign(coupon, "locked"), await open_campaign(coupon, "free")
    lock = f"SELECT FROM campaigns WHERE campaign_id = '{locked}' FOR NO KEY UPDATE"
    async with open_transaction(coupon_database, lock):
        waiting = [
            asyncio.ensure_future(coupon.IssueCoupon(issue(locked, f"u{number}")))
            for number in range(20)
        ]
        others = await asyncio.gather(
            *(coupon.IssueCoupon(issue(free, f"u{number}", "i2")) for number in range(10))
        )
        assert sorted(other.coupon.issue_number for other in others) == list(range(1, 11))
        assert not any(task.done() for task in waiting)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    numbers = [result.coupon.issue_number for result in results if hasattr(result, "coupon")]
    assert sorted(numbers) == list(range(1, 11))


@pytest.mark.parametrize("over", ["sold out", "ended"])
async def test_calls_after_the_end_of_a_campaign_wait_for_no_lock(
    coupon: Any, coupon_database: ServiceUrls, sql: Callable[[str], str], over: str
) -> None:
    campaign_id = await open_campaign(coupon, quantity=1 if over == "sold out" else 2)
    await coupon.IssueCoupon(issue(campaign_id, "ann"))
    reason = "COUPON_SOLD_OUT"
    if over == "ended":
        sql("UPDATE campaigns SET end_time = now()")
        reason = "CAMPAIGN_NOT_OPEN"
    for user_id in ("bob", "carl"):  # of each replica the first
        with refused(reason):
            await coupon.IssueCoupon(issue(campaign_id, user_id))
    lock = f"SELECT FROM campaigns WHERE campaign_id = '{campaign_id}' FOR NO KEY UPDATE"
    async with open_transaction(coupon_database, lock):
        with refused(reason):
            await coupon.IssueCoupon(issue(campaign_id, "dan"))
        with refused("COUPON_ALREADY_ISSUED"):
            await coupon.IssueCoupon(issue(campaign_id, "ann", "i2"))


async def test_calls_refused_before_the_start_are_decided_after_it(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    made = await coupon.CreateCampaign(campaign(starts_in=HOUR / 2))
    campaign_id = made.campaign.campaign_id
    for _ in range(2):
        with refused("CAMPAIGN_NOT_OPEN"):
            await coupon.IssueCoupon(issue(campaign_id, "ann"))
    sql("UPDATE campaigns SET start_time = now() - interval '1 second'")
    for number in (1, 2):
        issued_ = await coupon.IssueCoupon(issue(campaign_id, f"u{number}"))
        assert issued_.coupon.issue_number == number


@pytest.mark.parametrize("command", ["redeem", "restore"])
async def test_locked_coupon_delays_only_its_own_commands(
    coupon: Any, coupon_database: ServiceUrls, command: str
) -> None:
    locked = (await issued(coupon, "ann", "locked")).coupon_id
    free = (await issued(coupon, "bob", "free")).coupon_id
    if command == "restore":
        await coupon.RedeemCoupon(redeem(locked, "ann", "r1"))
    lock = f"SELECT FROM coupons WHERE coupon_id = '{locked}' FOR NO KEY UPDATE"
    async with open_transaction(coupon_database, lock):
        waiting = asyncio.ensure_future(
            coupon.RedeemCoupon(redeem(locked, "ann", "r1"))
            if command == "redeem"
            else coupon.RestoreCoupon(restore(locked, "ann", "r1", "s1"))
        )
        for number in range(10):
            await coupon.RedeemCoupon(redeem(free, "bob", f"r{number}"))
            await coupon.RestoreCoupon(restore(free, "bob", f"r{number}", f"s{number}"))
        assert not waiting.done()
        # Reads do not wait for writes.
        await coupon.GetCoupon(get_coupon(locked, "ann"))
    response = await waiting
    assert not response.replayed
    assert (response.coupon.state == pb.Coupon.STATE_REDEEMED) == (command == "redeem")
