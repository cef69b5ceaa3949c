"""Row locks of a batch: their order, what they report of locked rows, and the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from balance_service.store.account import _ACCOUNTS as WILDCARD
from balance_service.tables import accounts, answers
from common.db.database import Database
from common.db.idempotency import IdempotencyStore, Record
from common.db.row_locks import AlsoRead, Locked, RowLocks, read_clock
from common.db.statements import Connection
from common.request_key import RequestKey

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


# -- what is read besides --------------------------------------------------------------------------

HELD = 7
"""An advisory lock."""
SLOW: RowLocks[Key] = RowLocks(
    accounts,
    "user_id",
    "currency_code",
    # The statement has begun when it waits, and has locked no row.
    matches=lambda wanted: sa.and_(
        accounts.c.user_id == wanted.c.user_id,
        accounts.c.currency_code == wanted.c.currency_code,
        sa.cast(sa.func.pg_advisory_xact_lock_shared(HELD), sa.Text) == "",
    ),
)
HOLD = sa.text(f"SELECT pg_advisory_xact_lock({HELD})")
CHANGE = sa.text("UPDATE accounts SET version = 1 WHERE user_id = :user")
STORE = IdempotencyStore(answers)
REQUEST = RequestKey("DeductBalance", "ann", "r1")
RECORD = sa.text(
    "INSERT INTO answers (method, scope, request_id, state, digest, body)"
    " VALUES ('DeductBalance', 'ann', 'r1', 'ANSWERED', 'content', 'quote \" and backslash')"
)


async def locked_with_records(
    database: Database, locks: RowLocks[Key], keys: list[Key], *, wait_for_locks: bool = False
) -> tuple[Locked[Key, Any], AlsoRead, Record | None]:
    """What a batch locks and reads, and the record that it finds in the end."""
    async with transaction(database) as connection:
        asked = STORE.asked([REQUEST])
        locked = await locks.lock(connection, keys, wait_for_locks=wait_for_locks, also=asked)
        records = await STORE.load_asked(connection, asked)
    return locked, asked, records.get(REQUEST)


@pytest.mark.parametrize(
    ("keys", "wait_for_locks", "is_read"),
    [(KEYS, False, True), ([NOBODY], False, False), (KEYS, True, False)],
    ids=["free", "no row", "waits"],
)
async def test_records_are_read_with_the_rows_or_after_them(
    database: Database, keys: list[Key], *, wait_for_locks: bool, is_read: bool
) -> None:
    async with database.begin() as connection:
        await connection.execute(RECORD)
    _, asked, record = await locked_with_records(
        database, LOCKS, keys, wait_for_locks=wait_for_locks
    )
    assert asked.is_read is is_read
    assert record == Record("ANSWERED", b"content", 'quote " and backslash')


async def test_where_there_are_no_records_none_are_found(database: Database) -> None:
    _, asked, record = await locked_with_records(database, LOCKS, KEYS)
    assert (asked.is_read, asked.value, record) == (True, None, None)


@pytest.mark.parametrize("changed", [True, False])
async def test_records_are_read_again_if_a_row_changed_before_it_was_locked(
    database: Database, *, changed: bool
) -> None:
    """A duplicate would find the row as its first request left it, and no record of that."""
    async with database.transactions.begin(database.lanes) as other:
        await other.execute(HOLD)
        locking = asyncio.create_task(locked_with_records(database, SLOW, [ANN, BOB]))
        async with database.reads.connect() as connection:
            while not await connection.scalar(WAITING):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if changed:
                await connection.execute(RECORD)
                await connection.execute(CHANGE, {"user": "bob"})
    locked, asked, record = await locking
    assert locked.found[BOB].version == int(changed)
    assert asked.is_read is not changed
    assert (record is not None) is changed
