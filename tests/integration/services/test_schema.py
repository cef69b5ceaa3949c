"""Each database is what the service's tables.py says, and the service may not change it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import balance_service.locking
import balance_service.tables
import coupon_service.locking
import coupon_service.tables
import order_service.locking
import order_service.tables
import payment_service.locking
import payment_service.tables
from common.db.errors import INSUFFICIENT_PRIVILEGE, sqlstate
from common.locking.strategy import Strategies
from common.urls import engine_url
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases

UNIQUE = sa.text(
    "SELECT conname FROM pg_constraint UNION "
    "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE indisunique"
)


@dataclass(frozen=True)
class Service:
    name: str
    metadata: sa.MetaData
    strategies: Strategies
    forbidden: tuple[str, ...]
    """Statements that would change the schema, or what has happened."""

    def __str__(self) -> str:
        return self.name


SERVICES = [
    Service(
        "balance",
        balance_service.tables.metadata,
        balance_service.locking.STRATEGIES,
        (
            "CREATE TABLE more (id int)",
            "ALTER TABLE accounts DROP CONSTRAINT accounts_available_not_negative",
            "DROP INDEX ledger_entries_refund_once",
            "DELETE FROM accounts",
            "UPDATE ledger_entries SET amount_minor = 1",
            "DELETE FROM ledger_entries",
        ),
    ),
    Service(
        "coupon",
        coupon_service.tables.metadata,
        coupon_service.locking.STRATEGIES,
        (
            "CREATE TABLE more (id int)",
            "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once",
            "DROP INDEX redemptions_live_once",
            "UPDATE campaigns SET quantity = 2",
            "DELETE FROM campaigns",
            "UPDATE coupons SET user_id = 'bob'",
            "UPDATE coupons SET issue_number = 2",
            "DELETE FROM coupons",
            "UPDATE redemptions SET discount_minor = 0",
            "DELETE FROM redemptions",
        ),
    ),
    Service(
        "payment",
        payment_service.tables.metadata,
        payment_service.locking.STRATEGIES,
        (
            "CREATE TABLE more (id int)",
            "ALTER TABLE payments DROP CONSTRAINT payments_key_once",
            "TRUNCATE payments",
            "DROP TABLE answers",
        ),
    ),
    Service(
        "order",
        order_service.tables.metadata,
        order_service.locking.STRATEGIES,
        (
            "CREATE TABLE more (id int)",
            "ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold",
            "DROP TABLE carts",
            "DELETE FROM orders",
            "UPDATE order_items SET quantity = 1",
            "DELETE FROM order_items",
        ),
    ),
]
FORBIDDEN = [(service, statement) for service in SERVICES for statement in service.forbidden]
each_service = pytest.mark.parametrize("service", SERVICES, ids=str)


@pytest.fixture
def urls(databases: Databases, service: Service) -> Iterator[ServiceUrls]:
    with databases.clone(service.name) as urls:
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
async def test_the_migrations_make_the_tables(
    connection: AsyncConnection, service: Service
) -> None:
    assert await connection.run_sync(differences, service.metadata) == []


@pytest.mark.parametrize("role", ["owner"])
@each_service
async def test_every_guard_of_a_strategy_exists(
    connection: AsyncConnection, service: Service
) -> None:
    existing = set(await connection.scalars(UNIQUE))
    for command, strategy in service.strategies.items():
        assert strategy.guards, command
        assert set(strategy.guards) <= existing, command


@pytest.mark.parametrize("role", ["runtime"])
@pytest.mark.parametrize(("service", "statement"), FORBIDDEN, ids=str)
async def test_the_service_may_not_change_its_schema_or_the_past(
    connection: AsyncConnection, statement: str
) -> None:
    with pytest.raises(sa.exc.ProgrammingError) as refused:
        await connection.execute(sa.text(statement))
    assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE
