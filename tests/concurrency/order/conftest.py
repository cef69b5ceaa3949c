"""Two replicas of the order service for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service.settings import OrderSettings
from order_service.wiring import build
from tests.support.crowd import Crowd, crowd_of
from tests.support.orders import Shop


@pytest.fixture
async def crowd(
    order_database: ServiceUrls, postgres_server: PostgresServer, redis_url: str
) -> AsyncIterator[Crowd[Shop]]:
    async with crowd_of(
        Shop.at,
        OrderSettings,
        build,
        order_database,
        postgres_server,
        redis_url=redis_url,
        max_concurrent_calls=10_000,
        # Only the test itself sweeps.
        expiry_interval_s=60,
    ) as opened:
        yield opened
