"""The table of idempotency records, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter

from balance_service.tables import answers
from common.db.database import Database
from common.db.errors import RecordConflict
from common.db.idempotency import (
    CLEAN_UP_ROWS,
    KEEP_DAYS,
    IdempotencyRecords,
    IdempotencyStore,
    Record,
)
from common.request_key import RequestKey, Result

BODY = TypeAdapter(str)
STORE = IdempotencyStore(answers)


@dataclass(frozen=True)
class Command:
    request_id: str
    digest: bytes = b"content"

    @property
    def key(self) -> RequestKey:
        return RequestKey("Method", "ann", self.request_id)


A, B, C = Command("a"), Command("b"), Command("c")


@asynccontextmanager
async def saving(database: Database, *commands: Command) -> AsyncIterator[IdempotencyRecords]:
    """The commands' records in a transaction; what the block adds is saved."""
    async with database.begin() as connection:
        records = await STORE.load(connection, [command.key for command in commands])
        yield records
        await STORE.save(connection, records)


async def load(database: Database, *commands: Command) -> IdempotencyRecords:
    async with saving(database, *commands) as records:
        return records


async def test_the_second_to_record_a_request_writes_nothing(database: Database) -> None:
    late = await load(database, A)
    async with saving(database, A) as records:
        records.answer(A, "first", BODY)
    late.answer(A, "second", BODY)
    late.answer(C, "in the same batch", BODY)
    with pytest.raises(RecordConflict):
        async with database.begin() as connection:
            await STORE.save(connection, late)
    records = await load(database, A, C)
    assert records.replay(A, BODY) == Result("first", replayed=True)
    assert records.get(C.key) is None


async def test_a_tombstone_replaces_only_the_record_that_was_read(database: Database) -> None:
    late = await load(database, A)
    async with saving(database, A) as records:
        records.answer(A, "done", BODY)
    late.cancel(A.key)
    with pytest.raises(RecordConflict):  # it would not compensate what was done meanwhile
        async with database.begin() as connection:
            await STORE.save(connection, late)
    async with saving(database, A) as records:
        records.cancel(A.key)
    records = await load(database, A)
    assert records.is_cancelled(A.key)
    assert records.get(A.key) == Record("CANCELLED", b"content", None)


async def test_a_tombstone_has_the_time_of_the_cancellation(database: Database) -> None:
    async with saving(database, A) as records:
        records.answer(A, "done", BODY)
    async with database.begin() as connection:
        await connection.execute(sa.text("UPDATE answers SET create_time = 'yesterday'"))
    async with saving(database, A) as records:
        records.cancel(A.key)
    async with database.reads.connect() as connection:
        new = sa.text("SELECT create_time > now() - interval '1 hour' FROM answers")
        assert await connection.scalar(new) is True


async def test_forgotten_records_are_not_saved(database: Database) -> None:
    async with saving(database, A, B) as records:
        records.answer(A, "not written after all", BODY)
        records.answer(B, "written", BODY)
        records.forget([A.key])
    records = await load(database, A, B)
    assert records.get(A.key) is None
    assert records.replay(B, BODY) == Result("written", replayed=True)


async def add_old_records(database: Database, count: int) -> None:
    """Add records, a tombstone among them, from before KEEP_DAYS, and a newer one."""
    insert = """
        INSERT INTO answers (method, scope, request_id, state, digest, body, create_time)
        SELECT 'Method', 'ann', id, state, '', body, now() - make_interval(days => days)
        FROM (SELECT CAST(n AS text), 'ANSWERED', 'x', CAST(:days AS int) + 1
              FROM generate_series(1, CAST(:count AS int)) n
              UNION ALL VALUES ('tombstone', 'CANCELLED', NULL, CAST(:days AS int) + 1),
                               ('new', 'ANSWERED', 'x', CAST(:days AS int) - 1))
             AS added (id, state, body, days)
        """
    async with database.begin() as connection:
        await connection.execute(sa.text(insert), {"days": KEEP_DAYS, "count": count})


async def test_old_records_are_cleaned_up_in_batches_and_tombstones_stay(
    database: Database,
) -> None:
    """After the batch in which the service stops, the rest is left to other replicas."""
    await add_old_records(database, 2 * CLEAN_UP_ROWS + 10)
    stopping = asyncio.Event()
    stopping.set()
    assert await STORE.clean_up(database, stopping) == CLEAN_UP_ROWS
    assert await STORE.clean_up(database, asyncio.Event()) == CLEAN_UP_ROWS + 10
    async with database.reads.connect() as connection:
        left = await connection.execute(sa.text("SELECT request_id FROM answers ORDER BY 1"))
        assert left.scalars() == ["new", "tombstone"]
