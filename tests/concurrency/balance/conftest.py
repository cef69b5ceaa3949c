"""Two replicas of the balance service for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.crowd import Crowd, crowd_of


@pytest.fixture
async def crowd(
    balance_database: ServiceUrls, postgres_server: PostgresServer, redis_url: str
) -> AsyncIterator[Crowd[Any]]:
    async with crowd_of(
        BalanceServiceStub,
        BalanceSettings,
        build,
        balance_database,
        postgres_server,
        redis_url=redis_url,
    ) as opened:
        yield opened
