"""Three replicas of the coupon service for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from coupon_service.settings import CouponSettings
from coupon_service.wiring import build
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.crowd import Crowd, crowd_of

REPLICAS = 3
"""More than two: a server accepts about a thousand new calls at once, and a sale has more."""


@pytest.fixture
async def crowd(
    coupon_database: ServiceUrls, postgres_server: PostgresServer, redis_url: str
) -> AsyncIterator[Crowd[Any]]:
    async with crowd_of(
        CouponServiceStub,
        CouponSettings,
        build,
        coupon_database,
        postgres_server,
        count=REPLICAS,
        redis_url=redis_url,
        max_concurrent_calls=10_000,
    ) as opened:
        yield opened
