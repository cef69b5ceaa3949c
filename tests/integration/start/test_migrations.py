"""`migrate` while the schema is in use, and while its server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from common.db.migrations import migrate
from common.db.migrations.run import LOCK_TIMEOUT_S, SchemaInUse
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.gateway import Gateway
from tests.integration.start.process import process
from tests.integration.start.services import AWAY, PASSWORD, environment
from tests.support.databases import Databases

REVISION = '''
from common.db.migrations import execute

revision = "{revision}"
down_revision = {before!r}


def upgrade() -> None:
    execute("""{sql}""")
'''
FAILED = 1


@pytest.fixture
def migrated(databases: Databases) -> Iterator[ServiceUrls]:
    """A database of the balance service."""
    with databases.clone("balance") as urls:
        yield urls


@pytest.fixture
def empty(databases: Databases, postgres_server: PostgresServer) -> Iterator[ServiceUrls]:
    """A database in which nothing has been made yet."""
    with databases.clone("balance"):
        pass  # the service's roles exist from here on
    yield postgres_server.create_database("test_migrations", service="balance")
    postgres_server.drop_database("test_migrations")


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """A first release's revisions: one table."""
    write(tmp_path, "0001", None, "CREATE TABLE things (thing integer PRIMARY KEY)")
    return tmp_path


def write(versions: Path, revision: str, before: str | None, sql: str) -> None:
    text = REVISION.format(revision=revision, before=before, sql=sql)
    (versions / f"{revision}_of_a_test.py").write_text(text)


def migrating(url: str, *, wait_s: int = 0) -> dict[str, str]:
    """What `migrate` is given."""
    return {
        **environment("balance", ""),
        "TALLY_BALANCE_OWNER_DATABASE_URL": url,
        "TALLY_MIGRATE_WAIT_S": str(wait_s),
    }


def behind(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)


@asynccontextmanager
async def session(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url, timeout=30, command_timeout=60)
    try:
        yield connection
    finally:
        await connection.close()


async def waiting(
    asked: asyncpg.Connection[asyncpg.Record], beginning: str, task: asyncio.Task[None]
) -> None:
    """Until a statement that begins so waits for a lock, or the task has ended."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND starts_with(query, $1)"
    )
    while not (task.done() or await asked.fetchval(sql, beginning)):  # noqa: ASYNC110 - from outside
        await asyncio.sleep(0.02)


async def test_a_table_in_use_ends_the_migration_and_frees_those_behind_it(
    empty: ServiceUrls, versions: Path
) -> None:
    """One transaction that has read the table and does not end, as a report's."""
    await migrate(empty.owner, versions)
    write(versions, "0002", "0001", "ALTER TABLE things ADD COLUMN colour text")
    async with (
        session(empty.owner) as report,
        session(empty.owner) as query,
        session(empty.owner) as looking,
        asyncio.timeout(100),
    ):
        held = report.transaction()
        await held.start()
        await report.fetch("SELECT FROM things")

        upgrade = asyncio.create_task(migrate(empty.owner, versions))
        await waiting(looking, "ALTER TABLE things", upgrade)
        # It queues behind the ALTER, which queues behind the report, which goes on all the time.
        assert await query.fetch("SELECT FROM things") == []
        with pytest.raises(SchemaInUse, match=f"held a table for {LOCK_TIMEOUT_S} s.*ALTER TABLE"):
            await upgrade
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0001"

        await held.rollback()
        await migrate(empty.owner, versions)
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0002"


async def test_each_revision_keeps_its_locks_and_its_changes_to_itself(
    empty: ServiceUrls, versions: Path
) -> None:
    """While one waits, what those before it have locked is free, and stays changed."""
    write(versions, "0002", "0001", "CREATE TABLE others (other integer PRIMARY KEY)")
    await migrate(empty.owner, versions)
    write(versions, "0003", "0002", "ALTER TABLE things ADD COLUMN colour text")
    write(versions, "0004", "0003", "ALTER TABLE others ADD COLUMN colour text")
    async with (
        session(empty.owner) as report,
        session(empty.owner) as looking,
        asyncio.timeout(100),
    ):
        held = report.transaction()
        await held.start()
        await report.fetch("SELECT FROM others")

        upgrade = asyncio.create_task(migrate(empty.owner, versions))
        await waiting(looking, "ALTER TABLE others", upgrade)
        await looking.execute("SET lock_timeout = 1")
        assert await looking.fetch("SELECT colour FROM things") == []
        with pytest.raises(SchemaInUse, match="the revision that waited for it changed nothing"):
            await upgrade
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0003"

        await held.rollback()
        await migrate(empty.owner, versions)
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0004"


async def test_a_revision_that_fails_leaves_nothing_of_itself(
    empty: ServiceUrls, versions: Path
) -> None:
    broken = "CREATE TABLE half (half integer);\nALTER TABLE nowhere ADD COLUMN colour text"
    write(versions, "0002", "0001", broken)
    with pytest.raises(ProgrammingError):
        await migrate(empty.owner, versions)
    async with session(empty.owner) as looking:
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0001"
        assert await looking.fetchval("SELECT to_regclass('half')") is None


async def test_an_older_release_leaves_a_newer_schema_as_it_is(migrated: ServiceUrls) -> None:
    """As the Job does that a rollback makes again, which knows nothing of that revision."""
    async with session(migrated.owner) as looking:
        await looking.execute("UPDATE alembic_version SET version_num = 'balance_9999'")
        async with process("balance_service", "migrate", **migrating(migrated.owner)) as running:
            status, told = await running.end()
        found = await looking.fetchval("SELECT version_num FROM alembic_version")
    assert status == 0, told
    assert told.count("the schema is newer than this release") == 1
    assert found == "balance_9999"


async def test_a_schema_in_use_is_told_in_one_line(migrated: ServiceUrls) -> None:
    async with session(migrated.owner) as other, other.transaction():
        await other.execute("LOCK TABLE alembic_version")
        async with process("balance_service", "migrate", **migrating(migrated.owner)) as running:
            status, told = await running.end()
    assert status == FAILED
    assert "Traceback" not in told
    assert (make_url(migrated.owner).password or "?") not in told
    assert told.splitlines()[-1].startswith(
        f"balance could not migrate: SchemaInUse: other transactions held a table for "
        f"{LOCK_TIMEOUT_S} s, and the revision that waited for it changed nothing; end the old ones"
    )


async def test_a_server_that_is_away_is_waited_for(
    empty: ServiceUrls, unused_tcp_port: int
) -> None:
    gateway = Gateway(unused_tcp_port, make_url(empty.owner).port or 0)
    given = migrating(behind(empty.owner, gateway.port), wait_s=100)
    async with process("balance_service", "migrate", **given) as running:
        reason = (await running.line("waiting for the database"))["reason"]
        assert reason == f"no answer from 127.0.0.1:{gateway.port}: Connection refused"
        await gateway.open()
        await running.line("migrated")
        status, told = await running.end()
        await gateway.close()
    assert status == 0
    assert told.count('"waiting for the database"') == 1, "a reason is told once"


async def test_the_wait_for_a_server_ends() -> None:
    given = migrating(f"postgresql://u:{PASSWORD}@{AWAY}/d", wait_s=2)
    async with process("balance_service", "migrate", **given) as running:
        await running.line("waiting for the database")
        status, told = await running.end()
    assert status == FAILED
    expected = f"TALLY_BALANCE_OWNER_DATABASE_URL: no answer from {AWAY}: Connection refused"
    assert told.splitlines()[-1] == expected


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
async def test_what_the_server_refuses_is_told_at_once(
    migrated: ServiceUrls, wrong: dict[str, Any], reason: str
) -> None:
    """Though there would be ten minutes to wait, which no test is given."""
    url = make_url(migrated.owner).set(**wrong).render_as_string(hide_password=False)
    async with process("balance_service", "migrate", **migrating(url, wait_s=600)) as running:
        status, told = await running.end()
    assert status == FAILED
    assert "waiting for the database" not in told
    assert told.splitlines()[-1].startswith("TALLY_BALANCE_OWNER_DATABASE_URL: ")
    assert reason in told.splitlines()[-1]
