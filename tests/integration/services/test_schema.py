"""Each database is what the service's tables.py says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib import import_module

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from common.urls import engine_url
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.services.operations import SERVICES
from tests.support.databases import Databases

UNIQUE = sa.text(
    "SELECT conname FROM pg_constraint UNION "
    "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE indisunique"
)

each_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def urls(databases: Databases, service: str) -> Iterator[ServiceUrls]:
    with databases.clone(service) as urls:
        yield urls


@pytest.fixture
async def connection(urls: ServiceUrls, role: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(engine_url(getattr(urls, role)))
    async with engine.connect() as opened:
        yield opened
    await engine.dispose()


def differences(connection: sa.Connection, metadata: sa.MetaData) -> list[object]:
    """What Alembic would change in the database."""
    options = {
        "compare_type": True,
        "include_name": lambda name, kind, _: (kind, name) != ("table", "alembic_version"),
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


@pytest.mark.parametrize("role", ["owner"])
@each_service
async def test_the_migrations_make_the_tables(connection: AsyncConnection, service: str) -> None:
    tables = import_module(f"{service}_service.tables")
    assert await connection.run_sync(differences, tables.metadata) == []


@pytest.mark.parametrize("role", ["owner"])
@each_service
async def test_every_guard_of_a_strategy_exists(connection: AsyncConnection, service: str) -> None:
    existing = set(await connection.scalars(UNIQUE))
    strategies, _ = SERVICES[service]
    for command, strategy in strategies.items():
        assert strategy.guards, command
        assert set(strategy.guards) <= existing, command
