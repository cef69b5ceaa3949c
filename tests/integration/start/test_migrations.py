"""`migrate` while a table is in use, and while the server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, ProgrammingError

from common.db.migrations import indexes, migrate, run
from common.db.migrations.run import LOCK_TIMEOUT_S, SchemaInUse
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.process import process
from tests.integration.start.services import (
    AWAY,
    FAILED,
    PASSWORD,
    at_port,
    environment,
    last_line,
    server_of,
    variable,
)
from tests.support.fake_server import TcpProxy

REVISION = '''
from common.db.migrations import execute

revision = "{revision}"
down_revision = {before!r}


def upgrade() -> None:
    execute("""{sql}""")
'''
WITH_INDEX = """
from common.db.migrations import create_index

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_index("things_by_colour", "things (colour) WHERE colour <> 'red'", unique=True)
"""
PLAIN_INDEX = REVISION.format(
    revision="0002", before="0001", sql="CREATE INDEX things_by_colour ON things (colour)"
)
WITH_COLOUR = "CREATE TABLE things (thing integer PRIMARY KEY, colour text)"
INDEXES = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('things_by_colour')"
OWNER_URL = variable("balance", "OWNER_DATABASE_URL")


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """The revisions of a first release: one table."""
    write(tmp_path, "0001", None, "CREATE TABLE things (thing integer PRIMARY KEY)")
    return tmp_path


def write(versions: Path, revision: str, before: str | None, sql: str) -> None:
    text = REVISION.format(revision=revision, before=before, sql=sql)
    (versions / f"{revision}_of_a_test.py").write_text(text)


def given(url: str, *, wait_s: int = 0) -> dict[str, str]:
    """The settings of `migrate`."""
    return {OWNER_URL: url, "TALLY_MIGRATE_WAIT_S": str(wait_s)}


@asynccontextmanager
async def session(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url, timeout=30, command_timeout=60)
    try:
        yield connection
    finally:
        await connection.close()


async def until_waiting(
    observer: asyncpg.Connection[asyncpg.Record], beginning: str, task: asyncio.Task[None]
) -> None:
    """Return when a statement that begins so waits for a lock, or the task has ended."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND starts_with(query, $1)"
    )
    while not (task.done() or await observer.fetchval(sql, beginning)):  # noqa: ASYNC110 - from outside
        await asyncio.sleep(0.02)


async def test_a_table_in_use_ends_the_migration_and_blocks_nobody_for_long(
    empty: ServiceUrls, versions: Path
) -> None:
    """One transaction, such as a report, has read the table and does not end.

    Each revision is a transaction of its own: while one waits, the locks of those before it are
    free, and their changes stay.
    """
    write(versions, "0002", "0001", "CREATE TABLE others (other integer PRIMARY KEY)")
    await migrate(empty.owner, versions)
    write(versions, "0003", "0002", "ALTER TABLE things ADD COLUMN colour text")
    write(versions, "0004", "0003", "ALTER TABLE others ADD COLUMN colour text")
    async with (
        session(empty.owner) as report,
        session(empty.owner) as query,
        session(empty.owner) as observer,
        asyncio.timeout(100),
    ):
        held = report.transaction()
        await held.start()
        await report.fetch("SELECT FROM others")

        upgrade = asyncio.create_task(migrate(empty.owner, versions))
        await until_waiting(observer, "ALTER TABLE others", upgrade)
        await observer.execute("SET lock_timeout = 1")
        assert await observer.fetch("SELECT colour FROM things") == []
        # It waits for the ALTER, which waits for the report, which never ends.
        assert await query.fetch("SELECT FROM others") == []
        changed_nothing = "the revision that waited for it changed nothing"
        message = rf"held a table for {LOCK_TIMEOUT_S} s.*{changed_nothing}.*ALTER TABLE"
        with pytest.raises(SchemaInUse, match=message):
            await upgrade
        assert await observer.fetchval("SELECT version_num FROM alembic_version") == "0003"

        await held.rollback()
        await migrate(empty.owner, versions)
        assert await observer.fetchval("SELECT version_num FROM alembic_version") == "0004"


@asynccontextmanager
async def index_waiting(
    urls: ServiceUrls, versions: Path, revision: str
) -> AsyncIterator[tuple[asyncio.Task[None], asyncpg.Connection[asyncpg.Record]]]:
    """The revision's migration, which waits for a transaction until the end, and a session."""
    write(versions, "0001", None, WITH_COLOUR)
    await migrate(urls.owner, versions)
    (versions / "0002_of_a_test.py").write_text(revision)
    async with session(urls.owner) as writer, session(urls.owner) as observer, asyncio.timeout(60):
        async with writer.transaction():
            await writer.execute("INSERT INTO things VALUES (1, 'blue')")
            upgrade = asyncio.create_task(migrate(urls.owner, versions))
            await until_waiting(observer, "CREATE", upgrade)
            await observer.execute("SET lock_timeout = 1")
            yield upgrade, observer
        await asyncio.wait([upgrade])


async def test_an_index_is_created_while_writes_go_on(
    empty: ServiceUrls, versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for older transactions longer than a lock that stops calls may."""
    monkeypatch.setattr(run, "LOCK_TIMEOUT_S", 0.001)
    async with index_waiting(empty, versions, WITH_INDEX) as (upgrade, observer):
        await observer.execute("INSERT INTO things VALUES (2, 'green')")
        assert not upgrade.done()
    await upgrade
    async with session(empty.owner) as observer:
        assert await observer.fetchval(INDEXES)
        assert await observer.fetchval("SELECT version_num FROM alembic_version") == "0002"
        with pytest.raises(asyncpg.UniqueViolationError, match="things_by_colour"):
            await observer.execute("INSERT INTO things VALUES (3, 'green')")


async def test_control_an_index_in_a_transaction_stops_writes(
    empty: ServiceUrls, versions: Path
) -> None:
    async with index_waiting(empty, versions, PLAIN_INDEX) as (upgrade, observer):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await observer.execute("INSERT INTO things VALUES (2, 'green')")
    await upgrade


async def test_an_index_that_was_interrupted_is_created_anew(
    empty: ServiceUrls, versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "WAIT_S", 0.1)
    async with index_waiting(empty, versions, WITH_INDEX) as (upgrade, observer):
        with pytest.raises(SchemaInUse, match=r"older than index things_by_colour .* 0\.1 s"):
            await upgrade
        assert await observer.fetchval(INDEXES) is False
        assert await observer.fetchval("SELECT version_num FROM alembic_version") == "0001"
    for _ in range(2):
        await migrate(empty.owner, versions)
        async with session(empty.owner) as observer:
            assert await observer.fetchval(INDEXES)


async def test_an_index_whose_connection_is_lost_says_so(
    empty: ServiceUrls, versions: Path
) -> None:
    async with index_waiting(empty, versions, WITH_INDEX) as (upgrade, observer):
        await observer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'CREATE UNIQUE INDEX%'"
        )
        with pytest.raises(DBAPIError, match="terminating connection"):
            await upgrade


async def test_a_revision_that_fails_changes_nothing(empty: ServiceUrls, versions: Path) -> None:
    broken = "CREATE TABLE half (half integer);\nALTER TABLE nowhere ADD COLUMN colour text"
    write(versions, "0002", "0001", broken)
    with pytest.raises(ProgrammingError):
        await migrate(empty.owner, versions)
    async with session(empty.owner) as observer:
        assert await observer.fetchval("SELECT version_num FROM alembic_version") == "0001"
        assert await observer.fetchval("SELECT to_regclass('half')") is None


async def test_an_older_release_leaves_a_newer_schema_as_it_is(migrated: ServiceUrls) -> None:
    """The Job of a rollback does not know the newer revision."""
    async with session(migrated.owner) as observer:
        await observer.execute("UPDATE alembic_version SET version_num = 'balance_9999'")
        line = await last_line("balance", 0, given(migrated.owner), "migrate")
        found = await observer.fetchval("SELECT version_num FROM alembic_version")
    assert '"migrated"' in line
    assert found == "balance_9999"


async def test_a_schema_in_use_is_reported_in_one_line(migrated: ServiceUrls) -> None:
    async with session(migrated.owner) as other, other.transaction():
        await other.execute("LOCK TABLE alembic_version")
        line = await last_line("balance", FAILED, given(migrated.owner), "migrate")
    assert line.startswith(
        f"balance could not migrate: SchemaInUse: other transactions held a table for "
        f"{LOCK_TIMEOUT_S} s, and the revision that waited for it changed nothing; end the old ones"
    )


async def test_a_server_that_is_away_is_waited_for(
    empty: ServiceUrls, unused_tcp_port: int
) -> None:
    url = at_port(empty.owner, unused_tcp_port)
    settings = environment("balance", "") | given(url, wait_s=100)
    async with process("balance_service", "migrate", **settings) as running:
        reason = (await running.line("waiting for the database"))["reason"]
        assert reason == f"no answer from 127.0.0.1:{unused_tcp_port}: Connection refused"
        async with TcpProxy.to(server_of(empty.owner), unused_tcp_port):
            await running.line("migrated")
            status, log = await running.end()
    assert status == 0
    assert log.count('"waiting for the database"') == 1, "a reason is logged once"


async def test_the_wait_for_a_server_ends() -> None:
    settings = given(f"postgresql://u:{PASSWORD}@{AWAY}/d", wait_s=2)
    line = await last_line("balance", FAILED, settings, "migrate")
    assert line == f"{OWNER_URL}: no answer from {AWAY}: Connection refused"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"password": PASSWORD}, 'password authentication failed for user "tally_balance_owner"'),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"query": {"sslmode": "require"}}, "rejected SSL upgrade"),
        ({"query": {"sslmode": "verify-full"}}, "root certificate file"),
    ],
    ids=["password", "database", "no-tls", "no-certificate"],
)
async def test_a_rejection_by_the_server_is_reported_at_once(
    migrated: ServiceUrls, wrong: dict[str, Any], reason: str
) -> None:
    """With ten minutes to wait, which is longer than a test may take."""
    url = make_url(migrated.owner).set(**wrong).render_as_string(hide_password=False)
    line = await last_line("balance", FAILED, given(url, wait_s=600), "migrate")
    assert line.startswith(f"{OWNER_URL}: ")
    assert reason in line
