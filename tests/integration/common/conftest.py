"""A database with idempotency records and a table of numbers, and a client of Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from common.db.database import Database, open_pools
from common.locking.redis import open_server
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tests.support.databases import Databases, name_of

NUMBERS = """
CREATE TABLE numbers (
    number bigint NOT NULL,
    CONSTRAINT numbers_pkey PRIMARY KEY (number),
    CONSTRAINT numbers_small CHECK (number < 1000)
);
GRANT SELECT, INSERT ON numbers TO tally_balance_runtime;
"""


@pytest.fixture
def core_urls(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("balance") as urls:
        databases.server.run_sql(NUMBERS, database=name_of(urls))
        yield urls


@pytest.fixture
async def database(core_urls: ServiceUrls) -> AsyncIterator[Database]:
    """One connection for lanes, one for transactions that wait, three for reads."""
    opened = open_pools(core_urls.runtime, application_name="core test", pool_size=6)
    yield opened
    await opened.close()


@pytest.fixture
async def redis(valkey_server: ValkeyServer, slow_machine: None) -> AsyncIterator[Redis]:
    client = open_server(valkey_server.url)
    yield client
    await client.aclose()
