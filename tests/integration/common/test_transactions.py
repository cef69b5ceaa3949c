"""COMMITs that wait for a synchronous standby: nothing makes them visible before it is back."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import sqlalchemy as sa

from balance_service.tables import SCHEMA
from common.db import transactions
from common.db.database import Database, open_pools
from common.db.readiness import NotReady, check_ready
from common.db.transactions import CommitPending
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import name_of
from tests.support.standby import Standby
from tests.support.time_limits import LONG_S


@pytest.fixture
def standby(core_urls: ServiceUrls, postgres_server: PostgresServer) -> Standby:
    required = Standby(postgres_server, [name_of(core_urls)])
    required.require()
    return required


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers give up soon. Whoever waits for a connection of the pool would wait for long."""
    monkeypatch.setattr(transactions, "COMMIT_WAIT_S", 0.1)


async def stored(database: Database) -> list[int]:
    async with database.reads.connect() as connection:
        rows = await connection.execute(sa.text("SELECT number FROM numbers ORDER BY number"))
        return list(rows.scalars())


async def insert(database: Database, number: int) -> None:
    async with database.begin() as connection:
        await connection.execute(sa.text(f"INSERT INTO numbers VALUES ({number})"))


async def test_control_a_commit_that_the_driver_cancels_is_visible(
    database: Database, core_urls: ServiceUrls, standby: Standby
) -> None:
    """Closing its connection does the same."""
    async with standby.away():
        connection = await asyncpg.connect(core_urls.runtime)
        commit = asyncio.create_task(connection.execute("INSERT INTO numbers VALUES (1)"))
        await standby.until_waiting(1)
        commit.cancel()
        await asyncio.wait({commit})
        await connection.close()
        assert await stored(database) == [1]


@pytest.mark.usefixtures("short_wait")
async def test_at_the_time_limit_the_outcome_is_unknown_and_commit_goes_on(
    database: Database, standby: Standby
) -> None:
    async with standby.away():
        with pytest.raises(CommitPending):
            await insert(database, 1)
        assert await stored(database) == []
        assert await standby.waiting() == 1
    assert await stored(database) == [1]


async def test_a_cancelled_caller_does_not_cancel_its_commit(
    database: Database, standby: Standby
) -> None:
    async with standby.away():
        caller = asyncio.create_task(insert(database, 1))
        await standby.until_waiting(1)
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()
        assert not database.transactions.pending, "it takes no longer than any other yet"
        assert await stored(database) == []
        assert await standby.waiting() == 1
    assert await stored(database) == [1]


async def test_at_shutdown_commits_are_left_to_the_server(
    core_urls: ServiceUrls, database: Database, standby: Standby
) -> None:
    closing = open_pools(core_urls.runtime, application_name="closing", pool_size=6)
    async with standby.away():
        caller = asyncio.create_task(insert(closing, 1))
        await standby.until_waiting(1)
        await closing.close()
        await asyncio.wait({caller})
        assert caller.exception() is not None
        assert await stored(database) == []
        assert await standby.waiting() == 1
    assert await stored(database) == [1]


async def test_commit_has_no_time_limit_of_the_driver(
    core_urls: ServiceUrls, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still waits when a statement that was sent after it has met its limit."""
    # The server has no limit then, and the driver one of a second.
    monkeypatch.setattr("common.db.database.STATEMENT_TIMEOUT_MS", 0)
    database = open_pools(core_urls.runtime, application_name="limits", pool_size=6)
    async with standby.away():
        caller = asyncio.create_task(insert(database, 1))
        await standby.until_waiting(1)
        with pytest.raises(TimeoutError):
            async with database.transactions.begin(database.lanes) as connection:
                await connection.execute(sa.text(f"SELECT pg_sleep({LONG_S})"))
        assert not caller.done()
        assert await stored(database) == []
    await caller
    await database.close()


@pytest.mark.usefixtures("short_wait")
async def test_without_a_connection_left_writes_are_refused_at_once(
    core_urls: ServiceUrls, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that wait for a connection already, and readiness says why.

    The pool has one connection, and its own limit is long.
    """
    monkeypatch.setattr("common.db.pool.WAIT_S", LONG_S)
    database = open_pools(core_urls.runtime, application_name="full", pool_size=6)
    await check_ready(database, schema=SCHEMA)
    async with standby.away():
        first, second = (asyncio.create_task(insert(database, number)) for number in (1, 2))
        await asyncio.wait({first, second})
        assert isinstance(first.exception(), CommitPending)
        assert isinstance(second.exception(), TimeoutError)
        with pytest.raises(CommitPending):
            await insert(database, 3)
        with pytest.raises(NotReady, match="COMMIT that waits for a standby of synchronous_stand"):
            await check_ready(database, schema=SCHEMA)
    await check_ready(database, schema=SCHEMA)
    await insert(database, 4)
    assert await stored(database) == [1, 4]
    await database.close()
