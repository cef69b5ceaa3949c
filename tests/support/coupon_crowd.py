"""A crowd before two replicas of the coupon service, and ways to take its guards away.

The guards go from outside: the service has no switch that would turn them off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from coupon_service import tables
from coupon_service.settings import CouponSettings
from coupon_service.store import campaigns, coupons
from coupon_service.wiring import build
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.coupons import campaign, issue, redeem
from tests.support.refusals import outcome
from tests.support.replicas import channel, replicas

REPLICAS = 3
"""More than two, so that a crowd's calls fit: a server takes about a thousand new ones at once."""
QUANTITY = 100
USERS = 10 * QUANTITY
RIVALS = 100
EXHAUSTED = "CONFLICT_RETRIES_EXHAUSTED"


@dataclass(frozen=True)
class Crowd:
    """The replicas, each with a client of its own, and their database."""

    stubs: list[Any]
    sql: Callable[[str], str]

    def turn(self, number: int) -> Any:
        return self.stubs[number % len(self.stubs)]

    def number(self, query: str) -> int:
        return int(self.sql(query).strip())


@asynccontextmanager
async def crowded(
    database: ServiceUrls, server: PostgresServer, redis_url: str
) -> AsyncIterator[Crowd]:
    name = urlsplit(database.owner).path.removeprefix("/")
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(
            replicas(
                REPLICAS,
                CouponSettings,
                build,
                database_url=database.runtime,
                redis_url=redis_url,
                max_concurrent_calls=10_000,
            )
        )
        channels = [await stack.enter_async_context(channel(address)) for address in addresses]
        yield Crowd(
            [CouponServiceStub(opened) for opened in channels],
            lambda text: server.run_sql(text, database=name),
        )


async def opened(crowd: Crowd, quantity: int = QUANTITY) -> str:
    response = await crowd.stubs[0].CreateCampaign(campaign(quantity=quantity))
    campaign_id: str = response.campaign.campaign_id
    return campaign_id


async def told(call: Callable[[], Any]) -> Any:
    """The final outcome of a call that is repeated while it may be."""
    for _ in range(100):
        result = await outcome(call())
        if result != EXHAUSTED:
            return result
    raise AssertionError("no final answer")


async def ask_a_hundred_times(crowd: Crowd, campaign_id: str) -> list[Any]:
    async def one(number: int) -> Any:
        request = issue(campaign_id, "ann", f"call-{number}")
        result = await told(lambda: crowd.turn(number).IssueCoupon(request))
        return result if isinstance(result, str) else Answer(result.coupon)

    return await asyncio.gather(*(one(number) for number in range(RIVALS)))


async def a_hundred_orders(crowd: Crowd, held: pb.Coupon) -> list[Any]:
    async def one(number: int) -> Any:
        request = redeem(held.coupon_id, "ann", f"r{number}", order_id=f"o{number}")
        result = await told(lambda: crowd.turn(number).RedeemCoupon(request))
        return result if isinstance(result, str) else Answer(result.coupon)

    return await asyncio.gather(*(one(number) for number in range(RIVALS)))


@dataclass(frozen=True, eq=False)
class Answer:
    """A response, which unlike a message can be counted."""

    coupon: pb.Coupon


async def one_coupon(crowd: Crowd) -> pb.Coupon:
    response = await crowd.stubs[0].IssueCoupon(issue(await opened(crowd), "ann"))
    got: pb.Coupon = response.coupon
    return got


async def coupons_of(crowd: Crowd, users: int) -> list[pb.Coupon]:
    campaign_id = await opened(crowd, users)
    responses = await asyncio.gather(
        *(
            crowd.turn(number).IssueCoupon(issue(campaign_id, f"u{number}"))
            for number in range(users)
        )
    )
    return [response.coupon for response in responses]


def live_redemptions(crowd: Crowd) -> int:
    return crowd.number("SELECT count(*) FROM redemptions WHERE restore_time IS NULL")


def redeemed_coupons(crowd: Crowd) -> int:
    return crowd.number("SELECT count(*) FROM coupons WHERE redeem_request_id IS NOT NULL")


# -- guards taken away ---------------------------------------------------------------------------


def unlock_campaigns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Campaigns are read, not locked."""
    unlocked = sa.select(
        tables.campaigns.c.campaign_id.label("wanted_id"),
        *tables.campaigns.c,
        campaigns._now,
    ).join_from(campaigns._wanted, tables.campaigns, campaigns._is_wanted)
    monkeypatch.setattr(campaigns, "_LOCK", unlocked)
    monkeypatch.setattr(campaigns, "_LOCK_FREE", unlocked)


def drop_constraints(crowd: Crowd) -> None:
    """The last guard of issuing."""
    crowd.sql(
        "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once,"
        " DROP CONSTRAINT coupons_number_once;"
        "ALTER TABLE campaigns DROP CONSTRAINT campaigns_issued_within_quantity;"
    )


def save_unconditionally(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coupon's use is written whatever it has become since it was read."""
    naive = (
        sa.update(tables.coupons)
        .values(
            redeem_request_id=coupons._used.c.redeem_request_id,
            order_id=coupons._used.c.order_id,
            redeem_time=coupons._used.c.redeem_time,
        )
        .where(tables.coupons.c.coupon_id == coupons._used.c.coupon_id)
        .returning(tables.coupons.c.coupon_id)
    )
    monkeypatch.setattr(coupons, "_SAVE", naive)


def delay_second_save(monkeypatch: pytest.MonkeyPatch, *, until: asyncio.Event) -> None:
    """The second batch to save waits before it does."""
    original = coupons.save
    saves = 0

    async def delayed(*args: Any, **kwargs: Any) -> set[str]:
        nonlocal saves
        saves += 1
        if saves == 2:
            await until.wait()
        return await original(*args, **kwargs)

    monkeypatch.setattr(coupons, "save", delayed)
