"""The payment database is what tables.py says, and its guards refuse impossible states."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from common.db.engines import Database
from deploy.local.postgres_roles import ServiceUrls
from payment_service import tables
from payment_service.locking import STRATEGIES
from tests.support.schema import differences, missing_constraints

CONFIRMED = "state = 'CONFIRMED', gateway_transaction_id = 't'"


async def test_the_migrations_make_these_tables(payment_database: ServiceUrls) -> None:
    assert await differences(payment_database.owner, tables.metadata) == []


async def test_every_guard_of_the_strategy_table_exists(payment_database: ServiceUrls) -> None:
    guards = {guard for strategy in STRATEGIES.values() for guard in strategy.guards}
    assert guards
    assert await missing_constraints(payment_database.owner, guards) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (id int)",
        "ALTER TABLE payments DROP CONSTRAINT payments_key_once",
        "TRUNCATE payments",
        "DROP TABLE answers",
    ],
)
async def test_the_service_cannot_change_its_schema(sessions: Database, statement: str) -> None:
    async with sessions.waiting.connect() as connection:
        with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner"):
            await connection.execute(sa.text(statement))


@pytest.mark.parametrize(
    ("changes", "guard"),
    [
        ("state = 'PAID', due_time = NULL, holder = NULL", tables.OUTCOME),
        ("state = 'CONFIRMED', due_time = NULL, holder = NULL", tables.OUTCOME),
        ("state = 'DECLINED', due_time = NULL, holder = NULL", tables.OUTCOME),
        ("due_time = NULL, holder = NULL", tables.DUE_WHILE_OPEN),
        (CONFIRMED, tables.DUE_WHILE_OPEN),
        (
            f"{CONFIRMED}, cancel_reason = 'r', due_time = NULL, holder = NULL",
            tables.DUE_WHILE_OPEN,
        ),
    ],
)
async def test_the_database_refuses_impossible_states(
    sessions: Database, changes: str, guard: str
) -> None:
    async with sessions.begin() as connection:
        await connection.execute(
            sa.text(
                "INSERT INTO payments VALUES (gen_random_uuid(), 'key', 'ann', 'c1', 'order-1',"
                " 'KRW', 1, 'toss', 'PENDING', NULL, NULL, NULL, NULL, gen_random_uuid(), now(),"
                " 0, 1, now(), now())"
            )
        )
    async with sessions.waiting.connect() as connection:
        with pytest.raises(sa.exc.IntegrityError, match=guard):
            await connection.execute(sa.text(f"UPDATE payments SET {changes}"))
