"""The tables in code are those that the migrations make."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service import saga_tables
from order_service.locking import STRATEGIES
from order_service.tables import metadata
from tests.support.orders import sql_of


async def test_tables_and_migrations_agree(order_database: ServiceUrls) -> None:
    assert saga_tables.sagas.metadata is metadata

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, _: (kind, name) != ("table", "alembic_version"),
            },
        )
        return list(compare_metadata(context, metadata))

    engine = create_async_engine(order_database.owner.replace("://", "+asyncpg://"))
    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


def test_every_constraint_named_as_a_guard_exists(
    order_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    sql = sql_of(postgres_server, order_database)
    found = set(
        sql("SELECT conname FROM pg_constraint UNION SELECT indexname FROM pg_indexes").splitlines()
    )
    for strategy in STRATEGIES.values():
        assert set(strategy.guards) <= found


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE carts",
        "CREATE TABLE other (id int)",
        "ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold",
        "UPDATE order_items SET quantity = 1",
        "DELETE FROM order_items",
        "DELETE FROM orders",
    ],
)
async def test_the_service_cannot_change_its_schema_or_what_was_ordered(
    order_database: ServiceUrls, statement: str
) -> None:
    engine = create_async_engine(order_database.runtime.replace("://", "+asyncpg://"))
    try:
        async with engine.connect() as connection:
            with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner"):
                await connection.execute(sa.text(statement))
    finally:
        await engine.dispose()
