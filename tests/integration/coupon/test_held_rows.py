"""A row that somebody holds for long delays the commands about it, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import campaign, get_coupon, issue, redeem, restore

Hold = Callable[[str], AbstractAsyncContextManager[None]]


@pytest.fixture
def hold(coupon_database: ServiceUrls) -> Hold:
    """Holds the rows that a query locks, until the block ends."""

    @asynccontextmanager
    async def holding(query: str) -> AsyncIterator[None]:
        engine = create_async_engine(
            make_url(coupon_database.runtime).set(drivername="postgresql+asyncpg")
        )
        async with engine.begin() as connection:
            await connection.execute(sa.text(query))
            yield
        await engine.dispose()

    return holding


async def opened(coupon: Any, request_id: str) -> str:
    response = await coupon.CreateCampaign(campaign(request_id))
    campaign_id: str = response.campaign.campaign_id
    return campaign_id


async def issued(coupon: Any, campaign_id: str, user_id: str) -> pb.Coupon:
    response = await coupon.IssueCoupon(issue(campaign_id, user_id))
    got: pb.Coupon = response.coupon
    return got


async def test_a_held_campaign_delays_its_own_coupons_only(coupon: Any, hold: Hold) -> None:
    held, free = await opened(coupon, "held"), await opened(coupon, "free")
    async with hold(f"SELECT FROM campaigns WHERE campaign_id = '{held}' FOR NO KEY UPDATE"):
        waiting = [
            asyncio.ensure_future(coupon.IssueCoupon(issue(held, f"u{number}")))
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


@pytest.mark.parametrize("ended", ["redeemed", "restored"])
async def test_a_held_coupon_delays_its_own_use_only(coupon: Any, hold: Hold, ended: str) -> None:
    campaign_id = await opened(coupon, "campaign")
    anns = await issued(coupon, campaign_id, "ann")
    bobs = await issued(coupon, campaign_id, "bob")
    if ended == "restored":
        await coupon.RedeemCoupon(redeem(anns.coupon_id, "ann", "r1"))
    query = f"SELECT FROM coupons WHERE coupon_id = '{anns.coupon_id}' FOR NO KEY UPDATE"
    async with hold(query):
        call = (
            coupon.RedeemCoupon(redeem(anns.coupon_id, "ann", "r1"))
            if ended == "redeemed"
            else coupon.RestoreCoupon(restore(anns.coupon_id, "ann", "r1", "s1"))
        )
        waiting = asyncio.ensure_future(call)
        for number in range(10):
            await coupon.RedeemCoupon(redeem(bobs.coupon_id, "bob", f"r{number}"))
            await coupon.RestoreCoupon(restore(bobs.coupon_id, "bob", f"r{number}", f"s{number}"))
        assert not waiting.done()
        # Reads do not queue behind writes.
        await coupon.GetCoupon(get_coupon(anns.coupon_id, "ann"))
    response = await waiting
    assert not response.replayed
    assert (response.coupon.state == pb.Coupon.STATE_REDEEMED) == (ended == "redeemed")
