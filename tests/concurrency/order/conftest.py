"""A crowd for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tests.support.databases import Databases
from tests.support.order_crowd import Crowd, crowded


@pytest.fixture
def database(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("order") as urls:
        yield urls


@pytest.fixture(params=["redis", "no-redis"])
async def crowd(
    request: pytest.FixtureRequest, database: ServiceUrls, postgres_server: PostgresServer
) -> AsyncIterator[Crowd]:
    redis_url = ""
    if request.param == "redis":
        valkey: ValkeyServer = request.getfixturevalue("valkey_server")
        redis_url = valkey.url
    async with crowded(database, postgres_server, redis_url) as opened:
        yield opened


@pytest.fixture
async def bare_crowd(
    database: ServiceUrls, postgres_server: PostgresServer
) -> AsyncIterator[Crowd]:
    """Without Redis."""
    async with crowded(database, postgres_server, "") as opened:
        yield opened
