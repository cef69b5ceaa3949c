"""Several writes in one statement: all or nothing, in their order, each with its count."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from asyncpg import CheckViolationError
from sqlalchemy.dialects.postgresql import insert

from balance_service.tables import AVAILABLE_NOT_NEGATIVE, accounts
from common.db.database import Database
from common.db.errors import StaleRead, constraint_name
from common.db.row_locks import CLOCK
from common.db.statements import Connection, Parameters, Rows
from common.db.unnest import arrays_of_tuples, unnest
from common.db.writes import Write, execute_together

_opened = unnest("opened", *accounts.c["user_id", "currency_code"])
OPEN = insert(accounts).from_select(
    ["user_id", "currency_code", "available_minor", "version", "update_time", "charged_minor"],
    sa.select(*_opened.c, sa.literal(0), sa.literal(0), CLOCK, sa.literal(1_000)),
)
_paid = unnest("paid", *accounts.c["user_id", "available_minor"])
PAY = (
    sa.update(accounts)
    .values(available_minor=_paid.c.available_minor, update_time=CLOCK)
    .where(accounts.c.user_id == _paid.c.user_id)
)
READ = sa.select(accounts).order_by(accounts.c.user_id)


def opening(*users: str, rows: int | None = None) -> Write:
    values = [(user, "KRW") for user in users]
    return Write(OPEN, arrays_of_tuples(_opened, values), rows)


def paying(*pairs: tuple[str, int], rows: int | None = None) -> Write:
    return Write(PAY, arrays_of_tuples(_paid, pairs), rows)


async def balances(database: Database) -> dict[str, int]:
    async with database.reads.connect() as connection:
        return {row.user_id: row.available_minor for row in await connection.execute(READ)}


@pytest.fixture(autouse=True)
async def rows(database: Database) -> None:
    async with database.begin() as connection:
        await execute_together(connection, [opening("ann", "bob")])


async def test_several_writes_are_one_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, sent = Connection.execute, []

    async def count(
        connection: Connection, statement: sa.Executable, parameters: Parameters
    ) -> Rows:
        sent.append(statement)
        return await execute(connection, statement, parameters)

    monkeypatch.setattr(Connection, "execute", count)
    for _ in range(2):
        async with database.begin() as connection:
            await execute_together(connection, [])
            await execute_together(
                connection, [paying(("ann", 1), ("bob", 2), rows=2), opening(rows=0)]
            )
    monkeypatch.undo()
    [first, second] = [one for one in sent if isinstance(one, sa.Select) and one.is_select]
    assert first is second, "it is built, compiled and prepared once"
    assert await balances(database) == {"ann": 1, "bob": 2}


async def test_a_write_that_changes_too_few_rows_leaves_nothing_of_the_others(
    database: Database,
) -> None:
    with pytest.raises(StaleRead):
        async with database.begin() as connection:
            writes = [opening("eve", rows=1), paying(("ann", 1), ("nobody", 2), rows=2)]
            await execute_together(connection, writes)
    assert await balances(database) == {"ann": 0, "bob": 0}


async def test_a_write_without_a_number_of_rows_may_change_fewer(database: Database) -> None:
    async with database.begin() as connection:
        await execute_together(connection, [paying(("ann", 1), ("nobody", 2))])
    assert await balances(database) == {"ann": 1, "bob": 0}


async def test_writes_run_in_their_order(database: Database) -> None:
    """Other transactions that insert the same rows wait for each other in one order."""
    for writes in (
        [opening("x-first"), paying(("ann", 1))],
        [paying(("bob", 1)), opening("y-second")],
    ):
        async with database.begin() as connection:
            await execute_together(connection, writes)
    async with database.reads.connect() as connection:
        rows = await connection.execute(READ)
    times = {row.user_id: row.update_time for row in rows}
    assert times["x-first"] < times["ann"]
    assert times["bob"] < times["y-second"]


async def test_a_violated_constraint_has_its_name(database: Database) -> None:
    with pytest.raises(CheckViolationError) as caught:
        async with database.begin() as connection:
            await execute_together(connection, [opening("eve"), paying(("ann", -1))])
    assert constraint_name(caught.value) == AVAILABLE_NOT_NEGATIVE
    assert await balances(database) == {"ann": 0, "bob": 0}


async def test_two_writes_may_not_have_a_parameter_in_common(database: Database) -> None:
    with pytest.raises(AssertionError, match="twice"):
        async with database.begin() as connection:
            await execute_together(connection, [paying(("ann", 1)), paying(("bob", 1))])
