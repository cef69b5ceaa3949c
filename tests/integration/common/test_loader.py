"""Single reads in batches: few statements, fresh values, and a result for every caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from common.batching.loader import BATCH_MAX, BatchLoader
from common.db.engines import Database
from common.db.statements import Connection
from common.errors import DatabaseUnavailable

_DOUBLE = sa.text("SELECT unnest(CAST(:numbers AS int[])) * 2")


class Doubling:
    """A read that notes its keys, waits for ``go_on``, and raises ``failures`` first."""

    def __init__(self, failures: Sequence[BaseException] = ()) -> None:
        self.batches: list[list[int]] = []
        self.failures = list(failures)
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, connection: Connection, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        await self.go_on.wait()
        if self.failures:
            raise self.failures.pop(0)
        return list((await connection.execute(_DOUBLE, {"numbers": list(numbers)})).scalars())


async def test_many_callers_share_one_statement(database: Database) -> None:
    read = Doubling()
    loader = BatchLoader(database, read)
    values = await asyncio.gather(*(loader.load(number) for number in range(BATCH_MAX + 1)))
    assert values == [2 * number for number in range(BATCH_MAX + 1)]
    assert [len(batch) for batch in read.batches] == [BATCH_MAX, 1]
    assert await loader.load(7) == 14
    await loader.close()


async def test_a_value_is_read_after_it_was_asked_for(database: Database) -> None:
    read = Doubling()
    loader = BatchLoader(database, read)
    read.go_on.clear()
    first = asyncio.ensure_future(loader.load(1))
    await read.begun.wait()
    # The same key, but asked for while the statement runs: it gets a statement of its own.
    second = asyncio.ensure_future(loader.load(1))
    await asyncio.sleep(0)
    read.go_on.set()
    assert list(await asyncio.gather(first, second)) == [2, 2]
    assert read.batches == [[1], [1]]


async def test_a_caller_that_leaves_disturbs_no_other(database: Database) -> None:
    read = Doubling()
    loader = BatchLoader(database, read)
    read.go_on.clear()
    leaving = asyncio.ensure_future(loader.load(1))
    staying = asyncio.ensure_future(loader.load(2))
    await read.begun.wait()
    late = asyncio.ensure_future(loader.load(3))
    await asyncio.sleep(0)
    leaving.cancel()
    late.cancel()
    read.go_on.set()
    assert await staying == 4
    await loader.close()
    assert leaving.cancelled()
    assert read.batches == [[1, 2]], "nothing was read for the caller that left before its batch"


async def test_a_lost_connection_is_tried_again_and_then_refused(database: Database) -> None:
    loader = BatchLoader(database, Doubling([ConnectionResetError()]))
    assert await loader.load(1) == 2
    loader = BatchLoader(database, Doubling([ConnectionResetError()] * 2))
    results = await asyncio.gather(loader.load(1), loader.load(2), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 2
    assert await loader.load(1) == 2


async def test_a_defect_reaches_the_callers_of_its_batch_only(database: Database) -> None:
    read = Doubling([LookupError("a defect")])
    loader = BatchLoader(database, read)
    with pytest.raises(LookupError):
        await loader.load(1)
    assert await loader.load(1) == 2
    assert len(read.batches) == 2


async def test_a_cancellation_by_the_driver_lets_nobody_wait_for_ever(database: Database) -> None:
    read = Doubling([asyncio.CancelledError()])
    loader = BatchLoader(database, read)
    results = await asyncio.gather(loader.load(1), loader.load(2), return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert await loader.load(1) == 2
