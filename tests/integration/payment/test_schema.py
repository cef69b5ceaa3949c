"""The payment database refuses impossible states, and finds what is due by an index."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from asyncpg import IntegrityConstraintViolationError

from common.db.database import Database
from common.db.statements import compiled
from payment_service import tables
from payment_service.store.recheck import CLAIM
from tests.support.payments import insert_claim

CONFIRMED = "state = 'CONFIRMED', gateway_transaction_id = 't'"
NOT_DUE = "due_time = NULL, holder = NULL"


@pytest.mark.parametrize(
    ("changes", "guard"),
    [
        (f"state = 'PAID', {NOT_DUE}", tables.OUTCOME),
        (f"state = 'CONFIRMED', {NOT_DUE}", tables.OUTCOME),
        (f"state = 'DECLINED', {NOT_DUE}", tables.OUTCOME),
        (NOT_DUE, tables.DUE_WHILE_OPEN),
        (CONFIRMED, tables.DUE_WHILE_OPEN),
        (f"{CONFIRMED}, cancel_reason = 'r', {NOT_DUE}", tables.DUE_WHILE_OPEN),
    ],
)
async def test_the_database_refuses_impossible_states(
    sessions: Database, changes: str, guard: str
) -> None:
    async with sessions.begin() as connection:
        await insert_claim(connection, "key")
    async with sessions.waiting.connect() as connection:
        with pytest.raises(IntegrityConstraintViolationError, match=guard):
            await connection.execute(sa.text(f"UPDATE payments SET {changes}"))


async def test_due_payments_are_found_by_an_index(sessions: Database) -> None:
    claims = compiled(CLAIM)
    async with sessions.begin() as connection:
        # A bound of the index, not only an order and a filter that reads all of it.
        explained = f"EXPLAIN {claims.sql}"
        plan = await connection.session.fetch(explained, *claims.values({"size": 8}))
    assert "Index Cond: (check_time <= now())" in "\n".join(line[0] for line in plan)
