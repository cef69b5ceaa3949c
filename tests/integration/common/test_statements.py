"""Statements by the driver: each type of a column both ways, rows, counts, and transactions."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final

import pytest
import sqlalchemy as sa
from asyncpg.exceptions import DataError, InterfaceError, PostgresError
from sqlalchemy.dialects.postgresql import ARRAY

from common.db import statements
from common.db.database import Database
from common.db.errors import Fault, classify, constraint_name
from common.db.statements import RolledBack, compiled
from common.db.unnest import arrays, arrays_of_tuples, unnest
from tests.support.databases import SERVICES

TIME: Final = datetime(2026, 1, 1, 12, 30, 15, 123_456, tzinfo=UTC)
ID: Final = "018f4e2a-7b1c-7d3e-8f4a-5b6c7d8e9f01"
VALUES: Final[dict[str, object]] = {
    "BIGINT": -(2**63),
    "INTEGER": 2**31 - 1,
    "BOOLEAN": False,
    "TEXT": "머그 €",
    'TEXT COLLATE "C"': "가 A-1",
    "BYTEA": b"\x00\xff",
    "TIMESTAMP WITH TIME ZONE": TIME,
    "UUID": ID,
    "FLOAT": 0.25,
    # As the stores pass and read them: JSON is the text of a parser, an array of its own.
    "JSONB": '{"a": [1, null]}',
    "TEXT[]": ["a", "b,c", ""],
}
NOT_OF_STORES: Final = {"TSTZMULTIRANGE"}
"""Types that only SQL itself reads and writes."""


def types_of_tables() -> dict[str, sa.types.TypeEngine[Any]]:
    """The types of all services' columns, by their names in SQL."""
    dialect = sa.dialects.postgresql.dialect()  # type: ignore[no-untyped-call]
    return {
        column.type.compile(dialect): column.type
        for service in SERVICES
        for table in import_module(f"{service}_service.tables").metadata.tables.values()
        for column in table.columns
    }


TYPES: Final = types_of_tables()


def test_every_type_of_a_column_is_tested() -> None:
    assert TYPES.keys() - NOT_OF_STORES <= VALUES.keys()


@pytest.mark.parametrize("name", sorted(TYPES.keys() - NOT_OF_STORES))
async def test_a_value_is_what_it_was_and_null_is_none(database: Database, name: str) -> None:
    statement = sa.select(sa.cast(sa.bindparam("value", type_=TYPES[name]), TYPES[name]))
    async with database.reads.connect() as connection:
        for value in (VALUES[name], None):
            assert await connection.scalar(statement, {"value": value}) == value


@pytest.mark.parametrize(
    "name", sorted(name for name in TYPES.keys() - NOT_OF_STORES if not name.endswith("[]"))
)
async def test_arrays_of_a_type_have_nulls_and_may_be_empty(database: Database, name: str) -> None:
    source = unnest("given", at=sa.BigInteger, value=TYPES[name])
    statement = sa.select(source.c.value).order_by(source.c.at)
    async with database.reads.connect() as connection:
        for values in ([VALUES[name], None, VALUES[name]], [None], []):
            parameters = arrays_of_tuples(source, enumerate(values))
            assert (await connection.execute(statement, parameters)).scalars() == values


AWKWARD: Final = [
    "",
    "NULL",
    "{}",
    "a,b",
    'say "a"',
    "C:\\dir\\",
    "\\",
    '"',
    " a ",
    "a\nb\t",
    "머그",
    "'",
]


@pytest.mark.parametrize("texts", [*([text] for text in AWKWARD), AWKWARD, [*AWKWARD, None]])
async def test_text_of_an_array_is_read_as_it_was(database: Database, texts: list[str]) -> None:
    source = unnest("given", at=sa.BigInteger, value=sa.Text)
    statement = sa.select(source.c.value).order_by(source.c.at)
    async with database.reads.connect() as connection:
        parameters = arrays_of_tuples(source, enumerate(texts))
        assert (await connection.execute(statement, parameters)).scalars() == texts


async def test_a_row_has_its_values_by_name_in_order_and_by_position(database: Database) -> None:
    statement = sa.text("SELECT 1 AS one, NULL::uuid AS no_id, 'x' AS count")
    async with database.reads.connect() as connection:
        row = (await connection.execute(statement)).one()
    one, no_id, count = row
    assert (row.one, row.no_id, row.count, row[0]) == (one, no_id, count, 1)
    assert (no_id, count) == (None, "x")
    with pytest.raises(AttributeError):
        row.another  # noqa: B018


_NUMBERS = unnest("new", number=sa.BigInteger)
_INSERT: Final = sa.text("INSERT INTO numbers VALUES (:number)")


@pytest.mark.parametrize(
    ("statement", "count"),
    [
        ("INSERT INTO numbers SELECT generate_series(3, 7)", 5),
        ("INSERT INTO numbers VALUES (1) ON CONFLICT DO NOTHING", 0),
        ("SELECT number FROM numbers WHERE number < 2", 1),
        ("SELECT number FROM numbers WHERE number > 2", 0),
    ],
)
async def test_rows_are_counted(database: Database, statement: str, count: int) -> None:
    async with database.reads.connect() as connection:
        await connection.execute(_INSERT, {"number": 1})
        assert (await connection.execute(sa.text(statement))).rowcount == count


@pytest.mark.parametrize(
    ("number", "constraint", "fault"),
    [
        (1, "numbers_pkey", Fault.TAKEN),
        (1_000, "numbers_small", Fault.COMMAND),
        (2**63, "", Fault.COMMAND),
        ("one", "", Fault.COMMAND),
    ],
)
async def test_a_refused_value_is_a_fault_of_its_command(
    database: Database, number: object, constraint: str, fault: Fault
) -> None:
    """Whether the server refuses it or the driver."""
    async with database.reads.connect() as connection:
        await connection.execute(_INSERT, {"number": 1})
        with pytest.raises(Exception) as refused:
            await connection.execute(_INSERT, {"number": number})
    assert (constraint_name(refused.value), classify(refused.value)) == (constraint, fault)


async def test_a_parameter_without_a_value_is_refused(database: Database) -> None:
    async with database.reads.connect() as connection:
        with pytest.raises(KeyError, match="number"):
            await connection.execute(_INSERT, {"nubmer": 1})


def test_a_statement_that_depends_on_the_number_of_values_is_refused() -> None:
    column = sa.column("number", sa.BigInteger)
    with pytest.raises(TypeError, match="use an array"):
        compiled(sa.select(column).where(column.in_(sa.bindparam("of", expanding=True))))
    of = sa.bindparam("of", type_=ARRAY(sa.BigInteger))
    assert "ANY" in compiled(sa.select(column).where(column == sa.any_(of))).sql


async def test_a_statement_is_prepared_once_in_a_session(database: Database) -> None:
    statement = sa.select(_NUMBERS)
    async with database.reads.connect() as connection:
        for count in range(5):
            rows = [{"number": number} for number in range(count)]
            await connection.execute(statement, arrays(_NUMBERS, rows))
        name = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%AS new(number)%'"
        assert await connection.scalar(sa.text(name)) == 1


# -- transactions ----------------------------------------------------------------------------------


async def stored(database: Database) -> list[int]:
    async with database.reads.connect() as connection:
        rows = await connection.execute(sa.text("SELECT number FROM numbers ORDER BY number"))
        return rows.scalars()


async def test_what_a_transaction_did_before_an_ignored_error_is_not_told_as_done(
    database: Database,
) -> None:
    """The server answers COMMIT with ROLLBACK, which is no error for the driver."""
    with pytest.raises(RolledBack):
        async with database.begin() as connection:
            await connection.execute(_INSERT, {"number": 1})
            with pytest.raises(Exception, match="numbers_pkey"):
                await connection.execute(_INSERT, {"number": 1})
    assert await stored(database) == []


async def test_a_transaction_without_statements_sends_nothing(database: Database) -> None:
    async with database.begin() as connection:
        assert not connection.session.is_in_transaction()
    assert await stored(database) == []


async def test_a_block_that_ignores_a_failed_begin_does_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statements would be transactions of their own."""
    monkeypatch.setattr(statements, "_BEGIN", "BEGIN ISOLATION LEVEL NONE")
    with pytest.raises(InterfaceError):
        async with database.begin() as connection:
            for _ in range(2):
                with suppress(PostgresError, InterfaceError):
                    await connection.execute(_INSERT, {"number": 1})
    assert await stored(database) == []


async def test_a_value_that_the_driver_refuses_leaves_no_transaction_open(
    database: Database,
) -> None:
    """The statement is prepared by then, and the server waits for its values."""
    with pytest.raises(DataError):
        async with database.reads.connect() as connection:
            pid = connection.session.get_server_pid()
            await connection.execute(_INSERT, {"number": "one"})
    begun = sa.text("SELECT xact_start FROM pg_stat_activity WHERE pid = :pid")
    async with database.waiting.connect() as connection:
        assert (await connection.execute(begun, {"pid": pid})).scalars() == [None]


async def test_after_an_error_the_session_is_used_again(database: Database) -> None:
    pids = set()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with database.begin() as connection:
                await connection.execute(_INSERT, {"number": 1})
                pids.add(connection.session.get_server_pid())
                raise ZeroDivisionError
    assert len(pids) == 1
    assert await stored(database) == []


@pytest.mark.parametrize("of_transaction", [True, False], ids=["transaction", "read"])
async def test_a_caller_that_goes_in_a_statement_leaves_its_session_usable(
    database: Database, of_transaction: bool
) -> None:
    """Its end is waited for by nobody, and the next caller finds no open transaction.

    The pool has one session: the next caller waits until it is free.
    """
    pool = database.lanes
    sleep = sa.text("SELECT pg_sleep(60)")
    pids = set()
    for _ in range(3):
        begun = asyncio.Event()

        async def work(begun: asyncio.Event = begun) -> None:
            begin = database.transactions.begin(pool) if of_transaction else pool.connect()
            async with begin as connection:
                pids.add(await connection.scalar(sa.text("SELECT pg_backend_pid()")))
                begun.set()
                await connection.execute(sleep)

        task = asyncio.create_task(work())
        await begun.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert len(pids) == 1
