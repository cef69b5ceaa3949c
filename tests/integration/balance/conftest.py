"""Two replicas of the balance service for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.replicas import channel, replicas


@pytest.fixture
async def balance(
    balance_database: ServiceUrls, redis_url: str
) -> AsyncIterator[BalanceServiceStub]:
    """A client of both replicas, in turns."""
    async with (
        replicas(
            2,
            BalanceSettings,
            build,
            database_url=balance_database.runtime,
            redis_url=redis_url,
        ) as addresses,
        channel(*addresses) as opened,
    ):
        yield BalanceServiceStub(opened)
