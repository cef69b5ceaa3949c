"""A row that another transaction locks for long delays only the commands that need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import get_coupon, issue, issued, open_campaign, redeem, restore

Lock = Callable[[str], AbstractAsyncContextManager[None]]


@pytest.fixture
def lock(coupon_database: ServiceUrls) -> Lock:
    """Locks the rows that a query selects, until the block ends."""

    @asynccontextmanager
    async def locking(query: str) -> AsyncIterator[None]:
        connection = await asyncpg.connect(coupon_database.runtime)
        try:
            async with connection.transaction():
                await connection.execute(f"{query} FOR NO KEY UPDATE")
                yield
        finally:
            await connection.close()

    return locking


async def test_locked_campaign_delays_only_its_own_coupons(coupon: Any, lock: Lock) -> None:
    locked, free = await open_campaign(coupon, "locked"), await open_campaign(coupon, "free")
    async with lock(f"SELECT FROM campaigns WHERE campaign_id = '{locked}'"):
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


@pytest.mark.parametrize("command", ["redeem", "restore"])
async def test_locked_coupon_delays_only_its_own_commands(
    coupon: Any, lock: Lock, command: str
) -> None:
    locked = (await issued(coupon, "ann", "locked")).coupon_id
    free = (await issued(coupon, "bob", "free")).coupon_id
    if command == "restore":
        await coupon.RedeemCoupon(redeem(locked, "ann", "r1"))
    async with lock(f"SELECT FROM coupons WHERE coupon_id = '{locked}'"):
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
