"""A coupon service of three replicas under concurrent calls, and ways to remove its guards.

Guards are removed from outside: the service has no switch for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from coupon_service import tables
from coupon_service.settings import CouponSettings
from coupon_service.store import coupon as store
from coupon_service.wiring import build
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.coupons import campaign, issue
from tests.support.refusals import outcome
from tests.support.replicas import channel, replicas

REPLICAS = 3
"""More than two: a server accepts about a thousand new calls at once, and a sale has more."""
QUANTITY = 100
USERS = 10 * QUANTITY
RIVALS = 100
CALLS_MAX = 100


class Results(NamedTuple):
    """What concurrent calls returned."""

    responses: list[Any]
    refusals: Counter[str]


@dataclass(frozen=True)
class Crowd:
    """A client for each replica, and the database."""

    stubs: list[Any]
    sql: Callable[[str], str]

    def number(self, query: str) -> int:
        return int(self.sql(query).strip())

    async def call(self, turn: int, method: str, request: Any) -> Any:
        """The response of one replica, or the reason of its refusal.

        CONFLICT_RETRIES_EXHAUSTED is repeated, as a client does.
        """
        stub = self.stubs[turn % len(self.stubs)]
        for _ in range(CALLS_MAX):
            result = await outcome(getattr(stub, method)(request))
            if result != "CONFLICT_RETRIES_EXHAUSTED":
                return result
        raise AssertionError("no final outcome")

    async def together(self, method: str, requests: Iterable[Any]) -> Results:
        """All calls at once, in turns over the replicas."""
        results = await asyncio.gather(
            *(self.call(turn, method, request) for turn, request in enumerate(requests))
        )
        return Results(
            [result for result in results if not isinstance(result, str)],
            Counter(result for result in results if isinstance(result, str)),
        )

    async def open_campaign(self, quantity: int = QUANTITY) -> str:
        response = await self.stubs[0].CreateCampaign(campaign(quantity=quantity))
        campaign_id: str = response.campaign.campaign_id
        return campaign_id

    async def issue_to(self, *user_ids: str) -> list[pb.Coupon]:
        """One coupon of a new campaign for each user."""
        campaign_id = await self.open_campaign(len(user_ids))
        issued = await self.together("IssueCoupon", [issue(campaign_id, id_) for id_ in user_ids])
        return sorted(
            (response.coupon for response in issued.responses),
            key=lambda coupon: user_ids.index(coupon.user_id),
        )

    @property
    def redeemed(self) -> tuple[int, int]:
        """The number of live redemptions, and of coupons that are redeemed."""
        return (
            self.number("SELECT count(*) FROM redemptions WHERE restore_time IS NULL"),
            self.number("SELECT count(*) FROM coupons WHERE redeem_request_id IS NOT NULL"),
        )


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


# -- removed guards ------------------------------------------------------------------------------


def drop_issue_constraints(crowd: Crowd) -> None:
    """Remove the last guard of IssueCoupon."""
    crowd.sql(
        f"ALTER TABLE coupons DROP CONSTRAINT {tables.USER_ONCE},"
        f" DROP CONSTRAINT {tables.NUMBER_ONCE};"
        f"ALTER TABLE campaigns DROP CONSTRAINT {tables.ISSUED_WITHIN_QUANTITY};"
    )


def drop_redeem_constraint(crowd: Crowd) -> None:
    """Remove the last guard of RedeemCoupon."""
    crowd.sql(f"DROP INDEX {tables.LIVE_REDEMPTION_ONCE}")


def save_unconditionally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a redeemed or restored coupon without its condition: the second guard."""
    changed = store._changed
    columns = ("redeem_request_id", "order_id", "redeem_time")
    unconditional = (
        sa.update(tables.coupons)
        .values({name: changed.c[name] for name in columns})
        .where(tables.coupons.c.coupon_id == changed.c.coupon_id)
        .returning(tables.coupons.c.coupon_id)
    )
    monkeypatch.setattr(store, "_SAVE", unconditional)


def delay_second_save(monkeypatch: pytest.MonkeyPatch, *, until: asyncio.Event) -> None:
    """Let the second batch that saves coupons wait before it does."""
    original = store.save_coupons
    saves = 0

    async def delayed(*args: Any, **kwargs: Any) -> set[str]:
        nonlocal saves
        saves += 1
        if saves == 2:
            await until.wait()
        return await original(*args, **kwargs)

    monkeypatch.setattr(store, "save_coupons", delayed)
