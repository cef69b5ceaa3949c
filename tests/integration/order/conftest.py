"""Two replicas of the order service for each test, with Redis and without; or the whole stack."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from common.db.database import open_pools
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import ROOT, name_of
from tests.support.orders import Shop, open_shop
from tests.support.saga_rows import Sagas
from tests.support.stack import no_faults, stack, stack_databases, stack_options

__all__ = ["no_faults", "stack", "stack_databases", "stack_options"]


@pytest.fixture
async def shop(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """A client of both replicas, in turns."""
    async with open_shop(2, database_url=order_database.runtime, redis_url=redis_url) as opened:
        yield opened


@pytest.fixture
def sql(order_database: ServiceUrls, postgres_server: PostgresServer) -> Callable[[str], str]:
    """Runs SQL in the test's database as superuser; returns its output, unaligned."""
    return lambda text: postgres_server.run_sql(text, database=name_of(order_database))


@pytest.fixture
async def sagas(order_database: ServiceUrls) -> AsyncIterator[Sagas]:
    opened = open_pools(order_database.runtime, application_name="journal test", pool_size=9)
    made = Sagas(opened)
    try:
        yield made
        for each in made.journals:
            await each.lane.close()
    finally:
        await opened.close()


# -- revisions -------------------------------------------------------------------------------------


@pytest.fixture
def until(tmp_path: Path) -> Callable[[int], Path]:
    """The revisions up to a number."""

    def copied(number: int) -> Path:
        for file in (ROOT / "order_service" / "migrations").glob("0*.py"):
            if int(file.name[:4]) <= number:
                shutil.copy(file, tmp_path)
        return tmp_path

    return copied


@pytest.fixture
def older_database(
    postgres_server: PostgresServer, order_database: ServiceUrls
) -> Iterator[ServiceUrls]:
    """An empty database, without a schema."""
    del order_database  # its server has the roles of the service
    name = "test_order_revisions"
    yield postgres_server.create_database(name, service="order")
    postgres_server.drop_database(name)
