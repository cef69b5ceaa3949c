"""The readiness probe, on a real database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from balance_service.settings import BalanceSettings
from balance_service.tables import SCHEMA
from common.db.database import Database, open_pools
from common.db.migrations import migrate
from common.db.readiness import NotReady, check_ready
from common.db.repeat import read
from common.errors import DatabaseUnavailable
from common.service import migrations_of
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_files import PostgresFiles
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import name_of


@pytest.mark.parametrize("pool_size", [4, 8, 11])
async def test_no_more_connections_are_opened_than_the_pool_size(
    core_urls: ServiceUrls, postgres_server: PostgresServer, pool_size: int
) -> None:
    """All of them at once, the probe's included."""
    database = open_pools(core_urls.runtime, application_name="count", pool_size=pool_size)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        for pool in (database.lanes, database.waiting, database.reads, database.probe):
            assert pool.size >= 1
            for _ in range(pool.size):
                connection = await stack.enter_async_context(pool.connect())
                await connection.execute(sa.text("SELECT"))
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'count %'"
        assert int(postgres_server.run_sql(sql, name_of(core_urls))) == pool_size


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
    database = open_pools(standby.runtime, application_name="standby", pool_size=8)
    try:
        with pytest.raises(NotReady, match="takes no writes: a hot standby"):
            await check_ready(database, schema=SCHEMA)
        # What is read there may be old.
        with pytest.raises(DatabaseUnavailable):
            await read(database, lambda connection: connection.execute(sa.text("SELECT")))
    finally:
        await database.close()
