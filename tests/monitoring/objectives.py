"""Calls that are not served, in a share that each alert of the error budget has to see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

from tally.coupon.v1 import coupon_pb2
from tally_client import Tally, TallyError
from tests.faults.stack import beside
from tests.monitoring.watched import Watched
from tests.support.coupons import campaign, issue

INTERVAL_S: Final = 0.01
"""Between two calls. Ten calls have to fail before an alert fires, of hundreds each."""
TIMEOUT_S: Final = 1.0


@dataclass
class Shares:
    """The load on the coupon service, which no other load of the stack uses."""

    fails_one_of: int = 1_000_000_000


@asynccontextmanager
async def coupons_half_held(watched: Watched) -> AsyncIterator[Shares]:
    """A session keeps the row of one campaign; callers look at another, and one of many wants a
    coupon of that one before its deadline.
    """
    shares = Shares()
    async with watched.client() as tally, watched.superuser("coupon") as session:
        free = await tally.coupon.create_campaign(campaign("objectives:free"))
        taken = await tally.coupon.create_campaign(campaign("objectives:held"))
        held_id = taken.campaign.campaign_id
        async with session.transaction():
            held = "SELECT FROM campaigns WHERE campaign_id = $1 FOR UPDATE"
            await session.execute(held, held_id)
            async with beside(_call(tally, shares, free.campaign.campaign_id, held_id)):
                yield shares


async def _call(tally: Tally, shares: Shares, free_id: str, held_id: str) -> None:
    async def one(number: int) -> None:
        with contextlib.suppress(TallyError):
            if number % shares.fails_one_of:
                request = coupon_pb2.GetCampaignRequest(campaign_id=free_id)
                await tally.coupon.get_campaign(request)
            else:
                await tally.coupon.issue_coupon(
                    issue(held_id, f"objectives:{number}"), timeout_s=TIMEOUT_S
                )

    async with asyncio.TaskGroup() as group:
        for number in count(1):
            group.create_task(one(number))
            await asyncio.sleep(INTERVAL_S)
