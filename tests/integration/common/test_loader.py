"""Single reads in batches: few statements, fresh values, and a result for every caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import pytest
import sqlalchemy as sa

from common.batching import gathering
from common.batching import loader as loaders
from common.batching.gathering import Processor
from common.batching.loader import BATCH_MAX, IN_FLIGHT_MAX, BatchLoader, load_by_id
from common.db.database import Database, open_pools
from common.db.errors import sqlstate
from common.db.statements import Connection
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Overloaded
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases, name_of

_DOUBLE = sa.text("SELECT unnest(CAST(:numbers AS int[])) * 2")


class Doubling:
    """A read that notes its keys, waits for ``go_on``, and raises ``failures`` first."""

    def __init__(self, failures: Sequence[BaseException] = ()) -> None:
        self.batches: list[list[int]] = []
        self.failures = list(failures)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._noted = asyncio.Event()

    async def __call__(self, connection: Connection, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self._noted.set()
        await self.go_on.wait()
        if self.failures:
            raise self.failures.pop(0)
        return list((await connection.execute(_DOUBLE, {"numbers": list(numbers)})).scalars())

    async def sent(self, count: int) -> None:
        """Wait until so many statements are on their way, or were."""
        while len(self.batches) < count:
            self._noted.clear()
            await self._noted.wait()


@pytest.fixture
async def doubling(database: Database) -> AsyncIterator[tuple[BatchLoader[int, int], Doubling]]:
    read = Doubling()
    loader = BatchLoader("number", database, read)
    yield loader, read
    read.go_on.set()
    await loader.close()


Loading = tuple[BatchLoader[int, int], Doubling]


async def test_many_callers_share_one_statement(doubling: Loading) -> None:
    loader, read = doubling
    values = await asyncio.gather(*(loader.load(number) for number in range(BATCH_MAX + 1)))
    assert values == [2 * number for number in range(BATCH_MAX + 1)]
    assert sorted(len(batch) for batch in read.batches) == [1, BATCH_MAX]
    assert await loader.load(7) == 14


async def test_callers_of_one_key_share_its_value(doubling: Loading) -> None:
    loader, read = doubling
    assert await asyncio.gather(*(loader.load(number % 3) for number in range(9))) == [0, 2, 4] * 3
    assert read.batches == [[0, 1, 2]]


async def test_the_next_statement_has_all_that_waited(doubling: Loading) -> None:
    loader, read = doubling
    read.go_on.clear()
    values = []
    for number in range(5):
        values.append(asyncio.ensure_future(loader.load(number)))
        await read.sent(min(len(values), IN_FLIGHT_MAX))
    read.go_on.set()
    assert await asyncio.gather(*values) == [0, 2, 4, 6, 8]
    assert read.batches == [[0], [1], [2, 3, 4]]


async def test_a_caller_that_leaves_disturbs_no_other(doubling: Loading) -> None:
    loader, read = doubling
    read.go_on.clear()
    leaving, staying = (asyncio.ensure_future(loader.load(number)) for number in (1, 2))
    await read.sent(1)
    second = asyncio.ensure_future(loader.load(3))
    await read.sent(IN_FLIGHT_MAX)
    late = asyncio.ensure_future(loader.load(4))
    await asyncio.sleep(0)
    leaving.cancel()
    late.cancel()
    read.go_on.set()
    assert [await staying, await second] == [4, 6]
    await loader.close()
    assert leaving.cancelled()
    assert read.batches == [[1, 2], [3]], "nothing is read for who left before the statement"


async def test_callers_beyond_the_depth_are_refused(
    doubling: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "DEPTH_MAX", 3)
    loader, read = doubling
    read.go_on.clear()
    values = []
    for number in range(IN_FLIGHT_MAX + 3):
        values.append(asyncio.ensure_future(loader.load(number)))
        await read.sent(min(len(values), IN_FLIGHT_MAX))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await loader.load(9)
    assert refused.value.metadata == {"loader": "number"}
    read.go_on.set()
    assert await asyncio.gather(*values) == [0, 2, 4, 6, 8]


async def test_text_that_is_no_id_is_not_asked_for(database: Database) -> None:
    async def read(connection: Connection, ids: Sequence[str]) -> list[str | None]:
        raise AssertionError

    assert await load_by_id(BatchLoader("id", database, read), "{not-an-id}") is None


@pytest.mark.parametrize("busy", [True, False])
async def test_callers_that_come_one_by_one_share_a_statement_of_a_busy_process(
    busy: bool, doubling: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with time to spare, the first ones get a statement each, at once."""
    monkeypatch.setattr(Processor, "busy", busy)
    monkeypatch.setattr(gathering, "TRY_EVERY", 0)
    monkeypatch.setattr(gathering, "GATHER_S", 0.05)
    loader, read = doubling
    read.go_on.clear()
    values = []
    for number in range(5):
        values.append(asyncio.ensure_future(loader.load(number)))
        if not busy:
            await read.sent(min(len(values), IN_FLIGHT_MAX))
        await asyncio.sleep(0)
    read.go_on.set()
    assert await asyncio.gather(*values) == [0, 2, 4, 6, 8]
    assert read.batches == ([[0, 1, 2, 3, 4]] if busy else [[0], [1], [2, 3, 4]])


# -- fresh values --------------------------------------------------------------------------------


class Joining(BatchLoader[str, int]):
    """A loader whose callers join a statement that has been sent."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._sent: dict[str, asyncio.Future[int]] = {}

    async def load(self, key: str) -> int:
        if key not in self._sent:
            self._sent[key] = asyncio.ensure_future(super().load(key))
        return await asyncio.shield(self._sent[key])


@pytest.mark.parametrize(
    ("kind", "seen"),
    [(BatchLoader[str, int], 1), (Joining, 0)],
    ids=["loader", "control: it joins a statement that was sent"],
)
async def test_a_read_sees_what_was_committed_before_it(
    database: Database, kind: Callable[..., BatchLoader[str, int]], seen: int
) -> None:
    executed, go_on = asyncio.Event(), asyncio.Event()

    async def count(connection: Connection, names: Sequence[str]) -> list[int]:
        result = await connection.execute(sa.text("SELECT count(*) FROM numbers"))
        counted = result.scalar_one()
        if not executed.is_set():
            executed.set()
            await go_on.wait()
        return [counted] * len(names)

    loader = kind("count", database, count)
    before = asyncio.ensure_future(loader.load("numbers"))
    await executed.wait()
    async with database.begin() as connection:
        await connection.execute(sa.text("INSERT INTO numbers VALUES (1)"))
    after = asyncio.ensure_future(loader.load("numbers"))
    await asyncio.sleep(0)
    go_on.set()
    assert [await before, await after] == [0, seen]
    await loader.close()


# -- failures ------------------------------------------------------------------------------------

BAD: Final = 5
NUMBERS: Final = (3, 4, BAD, 6, 7, 8, BAD)
FAILS: Final = f"""
CREATE FUNCTION fails(number int, state text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
    IF number = {BAD} THEN RAISE EXCEPTION 'made up' USING ERRCODE = state; END IF;
    RETURN number;
END $$
"""
_FAIL: Final = sa.text(
    "SELECT fails(number, CAST(:state AS text)) FROM unnest(CAST(:numbers AS int[])) AS number"
)


async def loaded_with(database: Database, state: str) -> tuple[list[Any], int]:
    """What the callers of NUMBERS get if BAD fails with this SQLSTATE; how many statements."""
    statements = 0

    async def read(connection: Connection, numbers: Sequence[int]) -> list[int]:
        nonlocal statements
        statements += 1
        asked = {"numbers": list(numbers), "state": state}
        return list((await connection.execute(_FAIL, asked)).scalars())

    loader = BatchLoader("failing", database, read)
    loads = (loader.load(number) for number in NUMBERS)
    results = await asyncio.gather(*loads, return_exceptions=True)
    await loader.close()
    return results, statements


@pytest.fixture
async def failing(databases: Databases, core_urls: ServiceUrls) -> AsyncIterator[Database]:
    databases.server.run_sql(FAILS, database=name_of(core_urls))
    opened = open_pools(core_urls.runtime, application_name="core test", pool_size=6)
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("state", "refusal"),
    [("22012", None), ("42883", None), ("57014", DatabaseUnavailable)],
    ids=["a value", "a defect", "statement_timeout"],
)
async def test_a_key_that_fails_its_statement_fails_alone(
    failing: Database, state: str, refusal: type[Exception] | None
) -> None:
    results, statements = await loaded_with(failing, state)
    errors = [result for result in results if isinstance(result, Exception)]
    assert [result for result in results if result not in errors] == [3, 4, 6, 7, 8]
    assert [type(error) if refusal else sqlstate(error) for error in errors] == [
        refusal or state
    ] * 2
    assert statements == 7, "six keys: halved until the one is found"


@pytest.mark.parametrize(
    ("state", "refusal"),
    [("53100", DatabaseUnavailable), ("55P03", ConflictRetriesExhausted)],
    ids=["the server", "a locked table"],
)
async def test_a_fault_that_no_key_causes_is_not_searched_for(
    failing: Database, state: str, refusal: type[Exception]
) -> None:
    results, statements = await loaded_with(failing, state)
    assert [type(result) for result in results] == [refusal] * len(NUMBERS)
    assert statements == 1


async def test_a_batch_is_divided_for_a_limited_time(
    failing: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "DIVIDE_S", 0.0)
    results, statements = await loaded_with(failing, "57014")
    assert [type(result) for result in results] == [DatabaseUnavailable] * len(NUMBERS)
    assert statements == 1


async def test_an_error_in_the_place_of_a_value_is_its_callers(database: Database) -> None:
    batches = []

    async def read(_: Connection, numbers: Sequence[int]) -> list[int | Exception]:
        batches.append(list(numbers))
        return [LookupError() if number == BAD else number for number in numbers]

    loader: BatchLoader[int, int] = BatchLoader("number", database, read)
    loads = (loader.load(number) for number in NUMBERS)
    results = await asyncio.gather(*loads, return_exceptions=True)
    failed = [number for number, got in zip(NUMBERS, results, strict=True) if got != number]
    assert failed == [BAD, BAD]
    assert batches == [[3, 4, BAD, 6, 7, 8]], "nothing is read again"


async def test_a_lost_connection_is_tried_again_and_then_refused(database: Database) -> None:
    loader = BatchLoader("number", database, Doubling([ConnectionResetError()]))
    assert await loader.load(1) == 2
    loader = BatchLoader("number", database, Doubling([ConnectionResetError()] * 2))
    results = await asyncio.gather(loader.load(1), loader.load(2), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 2
    assert await loader.load(1) == 2


async def test_a_cancellation_by_the_driver_lets_nobody_wait_for_ever(database: Database) -> None:
    read = Doubling([asyncio.CancelledError()])
    loader = BatchLoader("number", database, read)
    results = await asyncio.gather(loader.load(1), loader.load(2), return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert await loader.load(1) == 2
