"""A coupon service of two replicas for each test, with Redis and without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from coupon_service.settings import CouponSettings
from coupon_service.wiring import build
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.databases import name_of
from tests.support.replicas import channel, replicas
from tests.support.tickets import hold_queues


@pytest.fixture
def sql(coupon_database: ServiceUrls, postgres_server: PostgresServer) -> Callable[[str], str]:
    """Runs SQL in the test's database as its administrator."""
    return lambda text: postgres_server.run_sql(text, database=name_of(coupon_database))


@pytest.fixture
async def coupon(coupon_database: ServiceUrls, redis_url: str) -> AsyncIterator[CouponServiceStub]:
    """A client of two replicas on one database."""
    async with (
        replicas(
            2, CouponSettings, build, database_url=coupon_database.runtime, redis_url=redis_url
        ) as addresses,
        channel(*addresses) as opened,
    ):
        yield CouponServiceStub(opened)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """No consumer reads a queue until this is set."""
    event = hold_queues(monkeypatch)
    yield event
    event.set()
