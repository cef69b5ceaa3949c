"""Each database is what the service's tables.py says, and the service may not change it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib import import_module

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from common.db.errors import INSUFFICIENT_PRIVILEGE, sqlstate
from common.urls import engine_url
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.services.operations import SERVICES
from tests.support.databases import Databases

UNIQUE = sa.text(
    "SELECT conname FROM pg_constraint UNION "
    "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE indisunique"
)


FORBIDDEN = {
    "balance": (
        "CREATE TABLE more (id int)",
        "ALTER TABLE accounts DROP CONSTRAINT accounts_available_not_negative",
        "DROP INDEX ledger_entries_refund_once",
        "DELETE FROM accounts",
        "UPDATE ledger_entries SET amount_minor = 1",
        "DELETE FROM ledger_entries",
    ),
    "coupon": (
        "CREATE TABLE more (id int)",
        "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once",
        "DROP INDEX redemptions_live_once",
        "UPDATE campaigns SET quantity = 2",
        "DELETE FROM campaigns",
        "UPDATE campaigns SET shares = 2",
        "UPDATE campaign_shares SET quantity = 2",
        "UPDATE campaign_shares SET first_number = 2",
        "DELETE FROM campaign_shares",
        "UPDATE coupons SET user_id = 'bob'",
        "UPDATE coupons SET issue_number = 2",
        "DELETE FROM coupons",
        "UPDATE redemptions SET discount_minor = 0",
        "DELETE FROM redemptions",
    ),
    "payment": (
        "CREATE TABLE more (id int)",
        "ALTER TABLE payments DROP CONSTRAINT payments_key_once",
        "TRUNCATE payments",
        "DROP TABLE answers",
    ),
    "order": (
        "CREATE TABLE more (id int)",
        "ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold",
        "DROP TABLE carts",
        "DELETE FROM orders",
        "UPDATE order_items SET quantity = 1",
        "DELETE FROM order_items",
    ),
}
"""Statements that would change a service's schema, or what has happened."""
each_service = pytest.mark.parametrize("service", FORBIDDEN)


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


@pytest.mark.parametrize("role", ["runtime"])
@pytest.mark.parametrize(
    ("service", "statement"), [(name, text) for name, texts in FORBIDDEN.items() for text in texts]
)
async def test_the_service_may_not_change_its_schema_or_the_past(
    connection: AsyncConnection, statement: str
) -> None:
    with pytest.raises(sa.exc.ProgrammingError) as refused:
        await connection.execute(sa.text(statement))
    assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE
