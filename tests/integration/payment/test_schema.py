"""The payment database refuses impossible states, and finds what is due by an index."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg

from common.db.engines import Database
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
        with pytest.raises(sa.exc.IntegrityError, match=guard):
            await connection.execute(sa.text(f"UPDATE payments SET {changes}"))


async def test_due_payments_are_found_by_an_index(sessions: Database) -> None:
    claims = CLAIM.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
    values = claims.construct_params({"size": 8})
    explain = f"EXPLAIN {claims}"
    async with sessions.begin() as connection:
        # A bound of the index, not only an order and a filter that reads all of it.
        given = tuple(values[name] for name in claims.positiontup or ())
        plan = "\n".join(row[0] for row in await connection.exec_driver_sql(explain, given))
    assert "Index Cond: (check_time <= now())" in plan
