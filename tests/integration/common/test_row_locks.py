"""Row locks of a batch: their order, what they report of locked rows, and the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from balance_service.store.account import _ACCOUNTS as WILDCARD
from balance_service.tables import accounts
from common.db.database import Database
from common.db.row_locks import Locked, RowLocks, read_clock
from common.db.statements import Connection

Key = tuple[str, str]
ANN, ANN_USD, BOB = KEYS = [("ann", "KRW"), ("ann", "USD"), ("bob", "KRW")]
NOBODY = ("nobody", "KRW")
LOCKS: RowLocks[Key] = RowLocks(accounts, "user_id", "currency_code")

INSERT = sa.text("INSERT INTO accounts VALUES (:user, :currency, 0, 0, now())")
LOCK_ONE = sa.text(
    "SELECT FROM accounts WHERE (user_id, currency_code) = (:user, :currency) FOR UPDATE"
)
FREE = sa.text("SELECT user_id, currency_code FROM accounts ORDER BY 1, 2 FOR UPDATE SKIP LOCKED")
WAITING = sa.text(
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture(autouse=True)
async def rows(database: Database) -> None:
    async with database.begin() as connection:
        for user, currency in KEYS:
            await connection.execute(INSERT, {"user": user, "currency": currency})


@asynccontextmanager
async def locked_by_another(database: Database, key: Key) -> AsyncIterator[Connection]:
    """Another transaction has the row's lock during the block."""
    async with database.transactions.begin(database.lanes) as connection:
        await connection.execute(LOCK_ONE, dict(zip(("user", "currency"), key, strict=True)))
        yield connection


@asynccontextmanager
async def transaction(database: Database) -> AsyncIterator[Connection]:
    async with database.begin() as connection:
        await connection.execute(sa.text("SET LOCAL lock_timeout = '60s'"))
        yield connection


async def free(database: Database) -> list[Key]:
    async with database.reads.connect() as connection:
        return [(user, currency) for user, currency in await connection.execute(FREE)]


def keys_of(locked: Locked[Any, Any]) -> set[Key]:
    return set(locked.found)


async def lock_and_wait(database: Database, keys: list[Key]) -> asyncio.Task[Locked[Key, Any]]:
    """A transaction that locks the rows, when it waits for one of them."""

    async def lock() -> Locked[Key, Any]:
        async with transaction(database) as connection:
            return await LOCKS.lock(connection, keys, wait_for_locks=True)

    locking = asyncio.create_task(lock())
    async with database.reads.connect() as connection:
        while not await connection.scalar(WAITING):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return locking


@pytest.mark.parametrize("keys", [KEYS, KEYS[::-1]], ids=["ascending", "descending"])
async def test_rows_are_locked_in_ascending_order(database: Database, keys: list[Key]) -> None:
    """While the second row is waited for, the first is locked and the third is not."""
    async with locked_by_another(database, ANN_USD):
        locking = await lock_and_wait(database, keys)
        assert await free(database) == [BOB]
    assert keys_of(await locking) == set(KEYS)


async def test_rows_locked_by_another_are_reported(database: Database) -> None:
    async with locked_by_another(database, ANN_USD), transaction(database) as connection:
        locked = await LOCKS.lock(connection, [*KEYS, NOBODY], wait_for_locks=False)
    assert keys_of(locked) == {ANN, BOB}
    assert locked.blocked == {ANN_USD}, "a row that does not exist is not blocked"


async def test_a_wildcard_key_locks_every_row_that_it_matches(database: Database) -> None:
    async with locked_by_another(database, ANN_USD), transaction(database) as connection:
        locked = await WILDCARD.lock(connection, [("ann", None)], wait_for_locks=False)
        assert keys_of(locked) == {ANN}
        assert locked.blocked == {ANN_USD}
        assert await free(database) == [BOB]


async def test_the_clock_is_read_after_the_wait(database: Database) -> None:
    async with locked_by_another(database, ANN) as other:
        locking = await lock_and_wait(database, [ANN])
        while_it_waits = await read_clock(other)
    now = (await locking).now
    assert now is not None
    assert now > while_it_waits


async def test_rows_are_read_without_locks(database: Database) -> None:
    async with locked_by_another(database, ANN), transaction(database) as connection:
        found = await LOCKS.read(connection, [ANN, BOB, NOBODY])
        assert keys_of(found) == {ANN, BOB}
        assert not found.blocked
        assert await free(database) == [ANN_USD, BOB]


async def test_without_keys_nothing_is_locked(database: Database) -> None:
    async with transaction(database) as connection:
        for nothing in (
            await LOCKS.lock(connection, [], wait_for_locks=True),
            await LOCKS.read(connection, []),
        ):
            assert nothing == Locked({}, frozenset(), None)
