"""Single reads that are gathered: few statements, fresh answers, and everybody hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.loader import BATCH_MAX, TRIES_MAX, BatchLoader
from common.db.engines import Database, open_engines
from common.errors import DatabaseUnavailable
from tests.support.databases import Databases

_DOUBLE = sa.text("SELECT unnest(CAST(:numbers AS int[])) * 2")


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    with databases.clone("balance") as urls:
        yield urls.runtime


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = open_engines(database_url, application_name="gathered", pool_size=3)
    yield opened
    await opened.close()


class Doubling:
    """A read that notes what it was asked, and may be held up or fail first."""

    def __init__(self, failures: Sequence[Exception] = ()) -> None:
        self.asked: list[list[int]] = []
        self.failures = list(failures)
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, connection: AsyncConnection, numbers: Sequence[int]) -> list[int]:
        self.asked.append(list(numbers))
        self.begun.set()
        await self.go_on.wait()
        if self.failures:
            raise self.failures.pop(0)
        return list((await connection.execute(_DOUBLE, {"numbers": list(numbers)})).scalars())


async def test_a_crowd_is_answered_by_one_statement(database: Database) -> None:
    read = Doubling()
    gathered = BatchLoader(database, read)
    answers = await asyncio.gather(*(gathered.get(number) for number in range(BATCH_MAX + 1)))
    assert answers == [2 * number for number in range(BATCH_MAX + 1)]
    assert [len(asked) for asked in read.asked] == [BATCH_MAX, 1]
    assert await gathered.get(7) == 14
    await gathered.close()


async def test_an_answer_is_never_older_than_its_question(database: Database) -> None:
    read = Doubling()
    gathered = BatchLoader(database, read)
    read.go_on.clear()
    first = asyncio.ensure_future(gathered.get(1))
    await read.begun.wait()
    # The same question, but asked while the statement was under way: it gets one of its own.
    second = asyncio.ensure_future(gathered.get(1))
    await asyncio.sleep(0)
    read.go_on.set()
    assert list(await asyncio.gather(first, second)) == [2, 2]
    assert read.asked == [[1], [1]]


async def test_one_who_leaves_takes_nobody_along(database: Database) -> None:
    read = Doubling()
    gathered = BatchLoader(database, read)
    read.go_on.clear()
    leaving = asyncio.ensure_future(gathered.get(1))
    staying = asyncio.ensure_future(gathered.get(2))
    await read.begun.wait()
    late = asyncio.ensure_future(gathered.get(3))
    await asyncio.sleep(0)
    leaving.cancel()
    late.cancel()
    read.go_on.set()
    assert await staying == 4
    await gathered.close()
    assert leaving.cancelled()
    # Nothing was asked for the one who had gone before.
    assert read.asked == [[1, 2]]


async def test_a_lost_connection_is_tried_again_and_then_told(database: Database) -> None:
    gathered = BatchLoader(database, Doubling([ConnectionResetError()] * (TRIES_MAX - 1)))
    assert await gathered.get(1) == 2
    gathered = BatchLoader(database, Doubling([ConnectionResetError()] * TRIES_MAX))
    told = await asyncio.gather(gathered.get(1), gathered.get(2), return_exceptions=True)
    assert [type(one) for one in told] == [DatabaseUnavailable] * 2
    assert await gathered.get(1) == 2


async def test_a_defect_reaches_those_who_asked_and_nobody_after(database: Database) -> None:
    read = Doubling([LookupError("a defect")])
    gathered = BatchLoader(database, read)
    with pytest.raises(LookupError):
        await gathered.get(1)
    assert await gathered.get(1) == 2
    assert len(read.asked) == 2
