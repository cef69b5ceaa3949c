"""The readiness probe, on a real database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from balance_service.settings import BalanceSettings
from balance_service.tables import SCHEMA
from common.db.engines import Database, open_engines, reading
from common.db.migrations import migrate
from common.db.readiness import NotReady, check_ready
from common.errors import DatabaseUnavailable
from common.service import migrations_of
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_files import PostgresFiles
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases

POOL = 8
CROWD = 300
ROUNDS = 5


@pytest.fixture
def urls(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("balance") as made:
        yield made


@pytest.fixture
async def database(urls: ServiceUrls) -> AsyncIterator[Database]:
    opened = open_engines(urls.runtime, application_name="ready", pool_size=POOL)
    yield opened
    await opened.close()


async def read_on(database: Database, done: asyncio.Event) -> None:
    """A reader that reads again and again, also after it got no connection."""
    while not done.is_set():
        try:
            async with reading(database) as connection:
                await connection.execute(sa.text("SELECT pg_sleep(0.01)"))
        except DatabaseUnavailable:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def all_connections_taken(database: Database) -> AsyncIterator[None]:
    """A block in which readers hold every connection for reads, and CROWD others wait."""
    done = asyncio.Event()
    async with AsyncExitStack() as stack:
        pool: sa.QueuePool = database.reads.pool  # type: ignore[assignment]  # by its options
        holders = [await stack.enter_async_context(reading(database)) for _ in range(pool.size())]
        crowd = [asyncio.create_task(read_on(database, done)) for _ in range(CROWD)]
        try:
            yield
        finally:
            done.set()
            for holder in holders:
                await holder.close()
            await asyncio.gather(*crowd)


async def test_waiting_readers_do_not_make_a_replica_unready(database: Database) -> None:
    async with all_connections_taken(database):
        for _ in range(ROUNDS):
            await check_ready(database, schema=SCHEMA)


@pytest.mark.parametrize("pool_size", [4, POOL, 11])
async def test_no_more_connections_are_opened_than_the_pool_size(
    urls: ServiceUrls, pool_size: int
) -> None:
    """All of them at once, the probe's included."""
    database = open_engines(urls.runtime, application_name="count", pool_size=pool_size)
    observer = await asyncpg.connect(urls.owner, timeout=30)
    try:
        async with AsyncExitStack() as stack:
            for engine in (database.lanes, database.waiting, database.reads, database.probe):
                pool: sa.QueuePool = engine.pool  # type: ignore[assignment]  # by its options
                assert pool.size() >= 1
                for _ in range(pool.size()):
                    connection = await stack.enter_async_context(engine.connect())
                    await connection.execute(sa.text("SELECT"))
            sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'count %'"
            assert await observer.fetchval(sql) == pool_size
    finally:
        await observer.close()
        await database.close()


async def test_a_session_that_becomes_read_only_is_not_ready(database: Database) -> None:
    await check_ready(database, schema=SCHEMA)
    async with database.probe.connect() as connection:
        await connection.execute(sa.text("SET default_transaction_read_only = on"))
    with pytest.raises(NotReady, match="takes no writes: a hot standby, or default_transaction"):
        await check_ready(database, schema=SCHEMA)
    async with database.probe.connect() as connection:
        await connection.execute(sa.text("RESET default_transaction_read_only"))
    await check_ready(database, schema=SCHEMA)


@pytest.fixture
def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceUrls]:
    """A migrated database on a server in standby mode."""
    server = PostgresServer(tmp_path / "standby", durable=False)
    with server:
        urls = server.provision("balance")
        asyncio.run(migrate(urls.owner, migrations_of(BalanceSettings)))
    pgdata = server.files.pgdata
    signal = pgdata / "standby.signal"
    signal.touch(mode=0o600)
    os.chown(signal, pgdata.stat().st_uid, pgdata.stat().st_gid)
    status = PostgresFiles.status

    def started(files: PostgresFiles, pid: int) -> str:
        return status(files, pid).replace("standby", "ready")

    monkeypatch.setattr(PostgresFiles, "status", started)
    server.port = 0
    with server:
        yield server.urls("balance")


async def test_a_hot_standby_is_not_served_from(standby: ServiceUrls) -> None:
    database = open_engines(standby.runtime, application_name="standby", pool_size=POOL)
    try:
        with pytest.raises(NotReady, match="takes no writes: a hot standby"):
            await check_ready(database, schema=SCHEMA)
        # What is read there may be old.
        with pytest.raises(DatabaseUnavailable):
            async with reading(database):
                pass
    finally:
        await database.close()
