"""Campaigns with shares as a client sees them, and what one share's lock delays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import asyncpg
import pytest
from asyncpg import CheckViolationError

from coupon_service.tables import SHARES_COUNT_ISSUED
from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    HOUR,
    adding_coupon,
    batch_issue,
    campaign,
    get_campaign,
    get_coupon,
    issue,
    open_campaign,
    redeem,
)
from tests.support.crowd import without_redis
from tests.support.databases import open_transaction
from tests.support.refusals import outcome, refused
from tests.support.statements import recorded_transactions


async def numbers_of(coupon: Any, campaign_id: str, *user_ids: str) -> list[int]:
    """The numbers of these users' new coupons, one call after another."""
    responses = [await coupon.IssueCoupon(issue(campaign_id, user_id)) for user_id in user_ids]
    return [response.coupon.issue_number for response in responses]


def locked_share(campaign_id: str, shares: str) -> str:
    """A statement that locks some shares: a condition."""
    return (
        f"SELECT FROM campaign_shares WHERE campaign_id = '{campaign_id}' AND {shares}"
        " FOR NO KEY UPDATE"
    )


async def assert_waiting(calls: Sequence[asyncio.Future[Any]], database: ServiceUrls) -> None:
    """A transaction waits for a lock, and none of the calls has ended."""
    connection = await asyncpg.connect(database.runtime)
    waiting = 0
    while not waiting and not any(call.done() for call in calls):
        waiting = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
        await asyncio.sleep(0.01)
    await connection.close()
    assert not any(call.done() for call in calls)


async def test_shares_are_shown_and_part_of_the_request(coupon: Any) -> None:
    made = await coupon.CreateCampaign(campaign("c1", quantity=10, shares=4))
    assert (made.campaign.shares, made.campaign.issued) == (4, 0)
    campaign_id = made.campaign.campaign_id
    assert (await coupon.GetCampaign(get_campaign(campaign_id))).campaign == made.campaign
    again = campaign("c1", quantity=10, shares=4)
    again.start_time.CopyFrom(made.campaign.start_time)
    again.end_time.CopyFrom(made.campaign.end_time)
    assert (await coupon.CreateCampaign(again)).replayed
    for other in (None, 1, 5):
        again.ClearField("shares")
        if other is not None:
            again.shares = other
        with refused("REQUEST_ID_REUSED"):
            await coupon.CreateCampaign(again)
    # One share is none: it is the same campaign as one without the field.
    plain = campaign("c2")
    assert (await coupon.CreateCampaign(plain)).campaign.shares == 1
    plain.shares = 1
    assert (await coupon.CreateCampaign(plain)).replayed
    listed = await coupon.ListCampaigns(pb.ListCampaignsRequest())
    assert [one.shares for one in listed.campaigns] == [1, 4]


async def test_issued_of_shares_is_their_sum_and_coupons_are_as_others(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, quantity=10, shares=4)
    users = ["ann", "bob", "cid", "dan", "eve"]
    await numbers_of(coupon, campaign_id, *users)
    got = (await coupon.GetCampaign(get_campaign(campaign_id))).campaign
    assert (got.issued, got.state) == (5, pb.Campaign.STATE_OPEN)
    assert (await coupon.ListCampaigns(pb.ListCampaignsRequest())).campaigns[0] == got
    for _ in range(2):  # of each replica
        again = await coupon.IssueCoupon(issue(campaign_id, "ann"))
        assert again.replayed
        with refused("COUPON_ALREADY_ISSUED"):
            await coupon.IssueCoupon(issue(campaign_id, "ann", "i2"))
    coupon_id = again.coupon.coupon_id
    assert (await coupon.GetCoupon(get_coupon(coupon_id, "ann"))).coupon == again.coupon
    redeemed = await coupon.RedeemCoupon(redeem(coupon_id, "ann", "r1"))
    assert redeemed.coupon.state == pb.Coupon.STATE_REDEEMED


@pytest.mark.parametrize(("quantity", "shares"), [(1, 2), (3, 64), (7, 3), (20, 2)])
async def test_every_coupon_of_every_share_is_issued_and_no_more(
    coupon: Any, quantity: int, shares: int
) -> None:
    """One client after another: each replica empties its share, and then the others."""
    campaign_id = await open_campaign(coupon, quantity=quantity, shares=shares)
    users = [f"u{number}" for number in range(quantity)]
    numbers = await numbers_of(coupon, campaign_id, *users)
    assert sorted(numbers) == list(range(1, quantity + 1))
    for _ in range(3):
        with refused("COUPON_SOLD_OUT") as ended:
            await coupon.IssueCoupon(issue(campaign_id, "late"))
        assert ended.refusal.quota[0].subject == f"campaign:{campaign_id}"
        with refused("COUPON_ALREADY_ISSUED"):
            await coupon.IssueCoupon(issue(campaign_id, "u0", "i2"))
        assert (await coupon.IssueCoupon(issue(campaign_id, "u0"))).replayed


async def test_one_bulk_call_takes_coupons_from_as_many_shares_as_it_needs(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, quantity=70, shares=64)
    users = [f"u{number}" for number in range(80)]
    for replayed in (False, True):
        response = await coupon.BatchIssueCoupons(batch_issue(campaign_id, users))
        issued, late = response.results[:70], response.results[70:]
        assert {each.coupon.issue_number for each in issued} == set(range(1, 71))
        assert {each.replayed for each in issued} == {replayed}
        assert all("COUPON_SOLD_OUT" in str(each.error) for each in late)


async def test_times_of_a_campaign_with_shares_are_kept(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    made = await coupon.CreateCampaign(campaign(starts_in=HOUR / 2, shares=4))
    campaign_id = made.campaign.campaign_id
    for _ in range(2):
        with refused("CAMPAIGN_NOT_OPEN"):
            await coupon.IssueCoupon(issue(campaign_id, "ann"))
    sql("UPDATE campaigns SET start_time = now() - interval '1 second'")
    await numbers_of(coupon, campaign_id, "ann", "bob")
    sql("UPDATE campaigns SET end_time = now()")
    for _ in range(3):
        with refused("CAMPAIGN_NOT_OPEN"):
            await coupon.IssueCoupon(issue(campaign_id, "cid"))
    assert (await coupon.IssueCoupon(issue(campaign_id, "ann"))).replayed


@without_redis
async def test_issue_without_shares_reads_and_writes_nothing_of_them(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, "plain", shares=1)
    with recorded_transactions() as transactions:
        await numbers_of(coupon, campaign_id, "ann", "bob")
    of_issue = [each for each in transactions if any("INTO coupons" in text for text in each)]
    assert len(of_issue) == 2
    for transaction in of_issue:
        lock, write = transaction
        assert "FOR NO KEY UPDATE OF campaigns SKIP LOCKED" in lock
        count, _, others = write.partition("INSERT INTO coupons")
        add, _, answer = others.partition("INSERT INTO answers")
        assert "UPDATE campaigns SET issued" in count
        assert add and answer and "ORDER BY" not in add
        assert not any("campaign_shares" in text for text in transaction)


# -- locked shares -------------------------------------------------------------------------------


async def test_locked_campaign_and_shares_delay_nobody_while_one_is_free(
    coupon: Any, coupon_database: ServiceUrls
) -> None:
    campaign_id = await open_campaign(coupon, quantity=20, shares=4)
    await numbers_of(coupon, campaign_id, "ann", "bob")  # of each replica the first
    row = f"SELECT FROM campaigns WHERE campaign_id = '{campaign_id}' FOR NO KEY UPDATE"
    async with (
        open_transaction(coupon_database, row),
        open_transaction(coupon_database, locked_share(campaign_id, "share <> 2")),
    ):
        numbers = await numbers_of(coupon, campaign_id, "cid", "dan", "eve")
        assert set(numbers) <= set(range(11, 16))


async def test_sold_out_is_said_only_when_all_shares_are_seen_to_be_empty(
    coupon: Any, coupon_database: ServiceUrls
) -> None:
    """Another transaction has a share with a coupon left: whoever needs it waits for its end."""
    campaign_id = await open_campaign(coupon, quantity=5, shares=2)
    await numbers_of(coupon, campaign_id, "u1", "u2", "u3", "u4")
    async with open_transaction(coupon_database, locked_share(campaign_id, "true")):
        waiting = [
            asyncio.ensure_future(outcome(coupon.IssueCoupon(issue(campaign_id, f"v{number}"))))
            for number in range(6)
        ]
        await assert_waiting(waiting, coupon_database)
    outcomes = await asyncio.gather(*waiting)
    refusals = [each for each in outcomes if isinstance(each, str)]
    assert refusals == ["COUPON_SOLD_OUT"] * 5
    # Now that it is known, nobody waits.
    async with open_transaction(coupon_database, locked_share(campaign_id, "true")):
        for number in range(2):
            with refused("COUPON_SOLD_OUT"):
                await coupon.IssueCoupon(issue(campaign_id, f"w{number}"))
        with refused("COUPON_ALREADY_ISSUED"):
            await coupon.IssueCoupon(issue(campaign_id, "u1", "i2"))


@without_redis
async def test_coupon_that_another_share_is_adding_delays_its_user_only(
    coupon: Any, coupon_database: ServiceUrls
) -> None:
    """As of a replica that is paused in its transaction: it has ann's coupon, not committed."""
    campaign_id = await open_campaign(coupon, quantity=40, shares=4)
    await numbers_of(coupon, campaign_id, "first", "second")
    async with open_transaction(coupon_database, adding_coupon(campaign_id, "ann")):
        waiting = [
            asyncio.ensure_future(outcome(coupon.IssueCoupon(issue(campaign_id, "ann", id_))))
            for id_ in ("i1", "i2")  # of each replica one
        ]
        await assert_waiting(waiting, coupon_database)
        await numbers_of(coupon, campaign_id, *(f"u{number}" for number in range(10)))
        assert not any(call.done() for call in waiting)
    assert await asyncio.gather(*waiting) == ["COUPON_ALREADY_ISSUED"] * 2


# -- an earlier release --------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_an_earlier_release_cannot_issue_from_the_row_of_a_campaign_with_shares(
    coupon: Any, coupon_database: ServiceUrls, sql: Callable[[str], str], *, guarded: bool
) -> None:
    """Its statements: it would count in the campaign's row, which has all of the quantity left."""
    campaign_id = await open_campaign(coupon, quantity=1, shares=2)
    await numbers_of(coupon, campaign_id, "ann")
    sql("UPDATE coupons SET issue_number = 999")  # or the numbers alone would prevent it
    if not guarded:
        sql(f"ALTER TABLE campaigns DROP CONSTRAINT {SHARES_COUNT_ISSUED}")
    count = f"UPDATE campaigns SET issued = issued + 1 WHERE campaign_id = '{campaign_id}'"
    add = adding_coupon(campaign_id, "bob").replace("999", "1")
    refusal = pytest.raises(CheckViolationError, match=SHARES_COUNT_ISSUED)
    with refusal if guarded else nullcontext():
        async with open_transaction(coupon_database, f"{count}; {add}"):
            pass
    assert sql("SELECT count(*) FROM coupons").strip() == ("1" if guarded else "2")


async def test_a_campaign_that_an_earlier_release_created_issues_from_its_row(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    campaign_id = await open_campaign(coupon, quantity=3)
    columns = (
        "campaign_id, name, currency_code, fixed_discount_minor, percent_discount,"
        " max_discount_minor, min_order_minor, quantity, issued, start_time, end_time,"
        " coupon_lifetime_us, request_id, create_time"
    )
    old = columns.replace("campaign_id,", "gen_random_uuid(),").replace("request_id,", "'earlier',")
    sql(f"INSERT INTO campaigns ({columns}) SELECT {old} FROM campaigns")
    earlier = sql("SELECT campaign_id FROM campaigns WHERE request_id = 'earlier'").strip()
    assert await numbers_of(coupon, earlier, "ann", "bob", "cid") == [1, 2, 3]
    with refused("COUPON_SOLD_OUT"):
        await coupon.IssueCoupon(issue(earlier, "dan"))
    assert campaign_id != earlier
