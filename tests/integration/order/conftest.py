"""An order service of two replicas for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tests.support.databases import Databases
from tests.support.orders import Shop, shop
from tests.support.stack import (
    gateway,
    stack,
    stack_databases,
    stack_options,
    stack_redis_url,
)

__all__ = ["gateway", "stack", "stack_databases", "stack_options", "stack_redis_url"]


@pytest.fixture
def order_database(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("order") as urls:
        yield urls


@pytest.fixture(params=["redis", "no-redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """Every test of correctness passes with Redis and without."""
    if request.param == "no-redis":
        return ""
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return server.url


@pytest.fixture
async def order(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """A client of two replicas on one database."""
    async with shop(2, database_url=order_database.runtime, redis_url=redis_url) as opened:
        yield opened
