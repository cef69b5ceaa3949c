"""Whole batches as arrays: one parameter per column, however many rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from balance_service.tables import accounts
from common.db.engines import Database
from common.db.unnest import arrays, unnest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = unnest("given", *accounts.c["user_id", "update_time"], step=sa.BigInteger)


@dataclass(frozen=True)
class Given:
    user_id: str
    update_time: datetime | None
    step: int
    other: str = "not a column"


ROWS = [Given("ann", NOW, 2**40), Given('it\'s {bob}, "NULL"', None, -1)]


@pytest.mark.parametrize(
    "rows", [ROWS, [vars(row) for row in ROWS], []], ids=["objects", "mappings", "none"]
)
async def test_rows_arrive_as_they_were_given(database: Database, rows: list[object]) -> None:
    async with database.reads.connect() as connection:
        found = await connection.execute(sa.select(SOURCE), arrays(SOURCE, rows))
        assert [tuple(row) for row in found] == [
            (row.user_id, row.update_time, row.step) for row in ROWS[: len(rows)]
        ]


def test_there_is_one_array_per_column_named_after_the_source() -> None:
    assert arrays(SOURCE, ROWS) == {
        "given_user_id": [row.user_id for row in ROWS],
        "given_update_time": [NOW, None],
        "given_step": [2**40, -1],
    }
