"""A balance service of two replicas for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.databases import Databases
from tests.support.replicas import channel, replicas


@pytest.fixture
def balance_database(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("balance") as urls:
        yield urls


@pytest.fixture(params=["redis", "no-redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """Every test of correctness passes with Redis and without."""
    if request.param == "no-redis":
        return ""
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return server.url


@pytest.fixture
async def balance(
    balance_database: ServiceUrls, redis_url: str
) -> AsyncIterator[BalanceServiceStub]:
    """A client of two replicas on one database."""
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
