"""The payment database refuses impossible states."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from common.db.engines import Database
from payment_service import tables

CONFIRMED = "state = 'CONFIRMED', gateway_transaction_id = 't'"


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
