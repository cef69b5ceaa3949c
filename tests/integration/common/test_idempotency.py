"""The table of answers, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from balance_service.tables import answers as table
from common.db.engines import Database, open_engines
from common.db.idempotency import CLEAN_UP_ROWS, KEEP_DAYS, IdempotencyStore, RecordConflict
from common.errors import RequestIdReused
from common.request_key import RequestKey
from tests.support.databases import Databases


@dataclass(frozen=True)
class Ask:
    key: RequestKey
    digest: bytes = b"content"


def key(request_id: str) -> RequestKey:
    return RequestKey("Method", "ann", request_id)


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    with databases.clone("balance") as urls:
        yield urls.runtime


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = open_engines(url, application_name="answers test", pool_size=6)
    yield opened
    await opened.close()


ANSWERS = IdempotencyStore(table)


async def test_what_was_answered_is_found_and_other_content_is_refused(database: Database) -> None:
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a"), key("b")])
        assert book.get(key("a")) is None
        book.answer(Ask(key("a")), "body a")
        book.refuse(Ask(key("b")), "body b")
        await book.save(connection)
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a"), key("b"), key("c")])
    found = book.get(key("a"))
    assert found is not None
    assert found.body_for(Ask(key("a"))) == "body a"
    with pytest.raises(RequestIdReused):
        found.body_for(Ask(key("a"), b"other"))
    refused = book.get(key("b"))
    assert refused is not None
    assert (refused.state, refused.body) == ("REFUSED", "body b")
    assert book.get(key("c")) is None


async def test_whoever_is_second_to_answer_is_told_and_writes_nothing(database: Database) -> None:
    async with database.begin() as connection:
        late = await ANSWERS.open(connection, [key("a")])
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a")])
        book.answer(Ask(key("a")), "first")
        await book.save(connection)
    late.answer(Ask(key("a")), "second")
    late.answer(Ask(key("z")), "with it")
    with pytest.raises(RecordConflict):
        async with database.begin() as connection:
            await late.save(connection)
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a"), key("z")])
    first = book.get(key("a"))
    assert first is not None
    assert first.body == "first"
    assert book.get(key("z")) is None


async def test_a_cancellation_overrules_the_answer_it_has_seen_and_no_other(
    database: Database,
) -> None:
    async with database.begin() as connection:
        blind = await ANSWERS.open(connection, [key("a")])
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a")])
        book.answer(Ask(key("a")), "done")
        await book.save(connection)
    blind.cancel(key("a"))
    with pytest.raises(RecordConflict):  # it would lose the undo of what was done meanwhile
        async with database.begin() as connection:
            await blind.save(connection)
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a")])
        book.cancel(key("a"))
        await book.save(connection)
    async with database.begin() as connection:
        book = await ANSWERS.open(connection, [key("a")])
    cancelled = book.get(key("a"))
    assert cancelled is not None
    assert cancelled.cancelled
    assert cancelled.body is None


async def test_old_answers_are_cleaned_up_and_cancellations_are_not(database: Database) -> None:
    rows = CLEAN_UP_ROWS + 10
    async with database.begin() as connection:
        await connection.execute(
            sa.text(
                """
                INSERT INTO answers (method, scope, request_id, state, digest, body, create_time)
                SELECT 'Old', 'ann', CAST(n AS text), 'ANSWERED', CAST('' AS bytea), 'x',
                       now() - make_interval(days => CAST(:days AS int) + 1)
                FROM generate_series(1, CAST(:rows AS int)) n
                UNION ALL
                SELECT 'Old', 'ann', 'cancelled', 'CANCELLED', CAST('' AS bytea), NULL,
                       now() - make_interval(days => CAST(:days AS int) + 1)
                UNION ALL
                SELECT 'New', 'ann', 'new', 'ANSWERED', CAST('' AS bytea), 'x',
                       now() - make_interval(days => CAST(:days AS int) - 1)
                """
            ),
            {"days": KEEP_DAYS, "rows": rows},
        )
    assert await ANSWERS.clean_up(database, asyncio.Event()) == rows
    async with database.reads.connect() as connection:
        left = await connection.scalars(sa.text("SELECT request_id FROM answers ORDER BY 1"))
        assert list(left) == ["cancelled", "new"]


async def test_a_clean_up_ends_with_its_batch_when_the_service_stops(database: Database) -> None:
    """The rest is left to other replicas, or to the next start."""
    async with database.begin() as connection:
        await connection.execute(
            sa.text(
                """
                INSERT INTO answers (method, scope, request_id, state, digest, body, create_time)
                SELECT 'Old', 'ann', CAST(n AS text), 'ANSWERED', CAST('' AS bytea), 'x',
                       now() - make_interval(days => CAST(:days AS int) + 1)
                FROM generate_series(1, CAST(:rows AS int)) n
                """
            ),
            {"days": KEEP_DAYS, "rows": 3 * CLEAN_UP_ROWS},
        )
    stopping = asyncio.Event()
    stopping.set()
    assert await ANSWERS.clean_up(database, stopping) == CLEAN_UP_ROWS
