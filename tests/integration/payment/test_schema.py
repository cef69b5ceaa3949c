"""What the code believes of the database is what the migrations make of it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from deploy.local.postgres_roles import ServiceUrls
from payment_service import tables

PAID = "state = 'CONFIRMED', gateway_transaction_id = 't'"


def _differences(connection: sa.Connection) -> list[object]:
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "include_name": lambda name, kind, _: (kind, name) != ("table", "alembic_version"),
        },
    )
    return list(compare_metadata(context, tables.metadata))


async def test_the_tables_are_the_migrated_ones(payment_database: ServiceUrls) -> None:
    engine = create_async_engine(
        make_url(payment_database.owner).set(drivername="postgresql+asyncpg")
    )
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
        names = await connection.scalars(sa.text("SELECT conname FROM pg_constraint"))
        named = {tables.KEY_ONCE, tables.REQUEST_ONCE, tables.OUTCOME, tables.DUE_WHILE_OPEN}
        assert named <= set(names)
    await engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (id int)",
        "ALTER TABLE payments DROP CONSTRAINT payments_key_once",
        "TRUNCATE payments",
        "DROP TABLE answers",
    ],
)
async def test_the_service_cannot_change_its_schema(
    payment_database: ServiceUrls, statement: str
) -> None:
    engine = create_async_engine(
        make_url(payment_database.runtime).set(drivername="postgresql+asyncpg")
    )
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner"):
            await connection.execute(sa.text(statement))
    await engine.dispose()


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ("state = 'PAID', due_time = NULL, holder = NULL", tables.OUTCOME),
        ("state = 'CONFIRMED', due_time = NULL, holder = NULL", tables.OUTCOME),
        ("state = 'DECLINED', due_time = NULL, holder = NULL", tables.OUTCOME),
        ("due_time = NULL, holder = NULL", tables.DUE_WHILE_OPEN),
        (PAID, tables.DUE_WHILE_OPEN),
        (f"{PAID}, cancel_reason = 'r', due_time = NULL, holder = NULL", tables.DUE_WHILE_OPEN),
    ],
)
async def test_the_database_refuses_states_that_cannot_be(
    payment_database: ServiceUrls, changes: str, broken: str
) -> None:
    engine = create_async_engine(
        make_url(payment_database.runtime).set(drivername="postgresql+asyncpg")
    )
    async with engine.begin() as connection:
        await connection.execute(
            sa.text(
                "INSERT INTO payments VALUES (gen_random_uuid(), 'key', 'ann', 'c1', 'order-1',"
                " 'KRW', 1, 'toss', 'PENDING', NULL, NULL, NULL, NULL, gen_random_uuid(), now(),"
                " 0, 1, now(), now())"
            )
        )
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.IntegrityError, match=broken):
            await connection.execute(sa.text(f"UPDATE payments SET {changes}"))
    await engine.dispose()
