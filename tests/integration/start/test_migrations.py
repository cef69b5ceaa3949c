"""`migrate` while the schema is in use, and while its server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from common.migrations import migrate
from common.migrations.run import LOCK_TIMEOUT_S, SchemaInUse
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.process import process
from tests.integration.start.services import environment
from tests.support.databases import Databases

REVISION = '''
from common.migrations import execute

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

        migrating = asyncio.create_task(migrate(empty.owner, versions))
        await waiting(looking, "ALTER TABLE things", migrating)
        # It queues behind the ALTER, which queues behind the report, which goes on all the time.
        assert await query.fetch("SELECT FROM things") == []
        with pytest.raises(SchemaInUse, match=f"held a table for {LOCK_TIMEOUT_S} s.*ALTER TABLE"):
            await migrating
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0001"

        await held.rollback()
        await migrate(empty.owner, versions)
        assert await looking.fetchval("SELECT version_num FROM alembic_version") == "0002"


async def test_a_schema_in_use_is_told_in_one_line(migrated: ServiceUrls) -> None:
    given = environment("balance", "") | {"TALLY_BALANCE_OWNER_DATABASE_URL": migrated.owner}
    async with session(migrated.owner) as other, other.transaction():
        await other.execute("LOCK TABLE alembic_version")
        async with process("balance_service", "migrate", **given) as running:
            status, told = await running.end()
    assert status == FAILED
    assert "Traceback" not in told
    assert (make_url(migrated.owner).password or "?") not in told
    assert told.splitlines()[-1].startswith(
        f"balance could not migrate: SchemaInUse: other transactions held a table for "
        f"{LOCK_TIMEOUT_S} s, and nothing was changed; end the old ones"
    )
