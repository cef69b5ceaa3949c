"""What the code says of the database is what the migrations make of it, and no more is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from common.db.errors import sqlstate
from coupon_service import tables
from coupon_service.locking import STRATEGIES
from deploy.local.postgres_roles import ServiceUrls

INSUFFICIENT_PRIVILEGE = "42501"


def engine(url: str) -> AsyncEngine:
    return create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))


async def test_the_tables_are_those_that_the_migrations_make(coupon_database: ServiceUrls) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found: list[Any] = compare_metadata(context, tables.metadata)
        return [one for one in found if "alembic_version" not in str(one)]

    opened = engine(coupon_database.owner)
    async with opened.connect() as connection:
        assert await connection.run_sync(differences) == []
    await opened.dispose()


async def test_every_guard_of_the_strategies_exists(coupon_database: ServiceUrls) -> None:
    query = sa.text(
        "SELECT conname FROM pg_constraint UNION SELECT indexrelid::regclass::text FROM pg_index"
        " WHERE indisunique"
    )
    opened = engine(coupon_database.owner)
    async with opened.connect() as connection:
        names = set((await connection.execute(query)).scalars())
    await opened.dispose()
    assert {guard for strategy in STRATEGIES.values() for guard in strategy.guards} <= names


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE coupons SET user_id = 'bob'",
        "UPDATE coupons SET issue_number = 2",
        "UPDATE campaigns SET quantity = 2",
        "UPDATE redemptions SET discount_minor = 0",
        "DELETE FROM coupons",
        "DELETE FROM redemptions",
        "DELETE FROM campaigns",
        "DROP INDEX redemptions_live_once",
        "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once",
        "CREATE TABLE more (id int)",
    ],
)
async def test_the_service_may_not_rewrite_who_got_what(
    coupon_database: ServiceUrls, statement: str
) -> None:
    opened = engine(coupon_database.runtime)
    with pytest.raises(exc.DBAPIError) as refused:
        async with opened.begin() as connection:
            await connection.execute(sa.text(statement))
    await opened.dispose()
    assert sqlstate(refused.value) == INSUFFICIENT_PRIVILEGE
