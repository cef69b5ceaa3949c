"""What a server has to be set to: checked when a session starts and before a migration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from balance_service.settings import BalanceSettings
from balance_service.tables import SCHEMA
from common.db.database import LANE_LOCK_TIMEOUT_MS, LOCK_TIMEOUT_MS, Database, open_pools
from common.db.migrations import migrate
from common.db.readiness import NotReady, check_ready
from common.db.server_settings import UnsuitableServer
from common.service import migrations_of
from common.setting_types import Pooler as Between
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import C_LOCALE, Databases, created, name_of
from tests.support.pooler import Pooler, pooler

VERSIONS = migrations_of(BalanceSettings)
SETTINGS = (
    "SELECT setting FROM pg_settings WHERE name IN ('enable_seqscan',"
    " 'idle_in_transaction_session_timeout', 'lock_timeout', 'statement_timeout') ORDER BY name"
)


def set_revision(server: PostgresServer, urls: ServiceUrls) -> None:
    """As if an earlier release had migrated the database."""
    server.run_sql(
        f"CREATE TABLE alembic_version AS SELECT '{SCHEMA}' AS version_num;"
        "GRANT SELECT ON alembic_version TO PUBLIC",
        name_of(urls),
    )


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """The block ends with a refusal that has these words."""
    with pytest.raises((NotReady, UnsuitableServer)) as ended:
        yield
    for word in words:
        assert word in str(ended.value)


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_KR", "SQL_ASCII"])
async def test_another_encoding_than_utf8_is_refused(encoding: str, databases: Databases) -> None:
    with created(databases.server, f"ENCODING '{encoding}' {C_LOCALE}") as urls:
        with refused(f"server_encoding is {encoding}", "ENCODING 'UTF8'"):
            await migrate(urls.owner, VERSIONS)
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert int(databases.server.run_sql(tables, name_of(urls))) == 0
        set_revision(databases.server, urls)
        database = open_pools(urls.runtime, application_name="test", pool_size=4)
        try:
            for _ in range(2):
                with refused(f"server_encoding is {encoding}"):
                    await check_ready(database, schema=SCHEMA)
        finally:
            await database.close()


async def test_a_collation_that_has_changed_is_refused_until_it_is_refreshed(
    database: Database, core_urls: ServiceUrls, databases: Databases
) -> None:
    """Its version is set back: the server's own collations do not change during a test."""
    name = name_of(core_urls)
    databases.server.run_sql(
        f"UPDATE pg_database SET datcollversion = '0' WHERE datname = '{name}'"
    )
    advice = ("collation C.UTF-8", f'REINDEX DATABASE "{name}"', "REFRESH COLLATION VERSION")
    with refused(*advice):
        await check_ready(database, schema=SCHEMA)
    with refused(*advice):
        await migrate(core_urls.owner, VERSIONS)
    databases.server.run_sql(f'ALTER DATABASE "{name}" REFRESH COLLATION VERSION')
    await check_ready(database, schema=SCHEMA)


async def test_a_collation_of_the_system_is_a_warning_while_the_database_is_empty(
    databases: Databases,
) -> None:
    """The version, which PostgreSQL records for it, is written by hand: the C locale has none."""
    with created(databases.server, f"ENCODING 'UTF8' {C_LOCALE}") as urls:
        databases.server.run_sql(
            f"UPDATE pg_database SET datcollversion = '2.41' WHERE datname = '{name_of(urls)}'"
        )
        with capture_logs() as logs:
            for _ in range(2):
                await migrate(urls.owner, VERSIONS)
    (reason,) = [line["reason"] for line in logs if line["event"] == "collation may change"]
    assert "BUILTIN_LOCALE 'C.UTF-8'" in reason


@pytest.mark.parametrize("between", ["none", "transaction"])
async def test_transactions_are_read_committed_whatever_is_the_default(
    between: Between, core_urls: ServiceUrls, databases: Databases
) -> None:
    """Single reads too where a session keeps its settings; elsewhere they conflict with nothing."""
    databases.server.run_sql(
        f'ALTER DATABASE "{name_of(core_urls)}"'
        " SET default_transaction_isolation = 'serializable'"
    )
    database = open_pools(core_urls.runtime, application_name="t", pool_size=4, pooler=between)
    reads = (database.reads, database.probe) if between == "none" else ()
    shown = sa.text("SHOW transaction_isolation")
    try:
        for pool in (database.lanes, database.waiting):
            async with database.transactions.begin(pool) as connection:
                assert await connection.scalar(shown) == "read committed"
        for pool in reads:
            async with pool.connect() as connection:
                assert await connection.scalar(shown) == "read committed"
    finally:
        await database.close()


@pytest.fixture(params=["refuses", "drops"])
async def pooled(request: pytest.FixtureRequest, core_urls: ServiceUrls) -> AsyncIterator[Pooler]:
    async with pooler(core_urls.runtime, refuses=request.param == "refuses") as running:
        yield running


async def limits(database: Database) -> dict[str, list[str]]:
    """The values of SETTINGS in a transaction of each purpose."""
    found = {}
    for purpose, engine in (("lanes", database.lanes), ("waiting", database.waiting)):
        async with database.transactions.begin(engine) as connection:
            rows = (await connection.execute(sa.text(SETTINGS))).scalars()
        found[purpose] = list(rows)
    return found


OWN_LIMITS = {
    "lanes": ["off", "6000", str(LANE_LOCK_TIMEOUT_MS), "3000"],
    "waiting": ["off", "6000", str(LOCK_TIMEOUT_MS), "3000"],
}


async def test_behind_a_pooler_each_transaction_has_its_own_settings(
    pooled: Pooler, core_urls: ServiceUrls
) -> None:
    database = open_pools(
        pooled.url(core_urls.runtime), application_name="t", pool_size=4, pooler="transaction"
    )
    try:
        with capture_logs() as logs:
            await check_ready(database, schema=SCHEMA)
        assert await limits(database) == OWN_LIMITS
        # They end with the transaction: the session is the next client's.
        async with database.lanes.connect() as connection:
            assert await connection.scalar(sa.text("SHOW lock_timeout")) == "0"
        async with database.reads.connect() as connection:
            assert await connection.scalar(sa.text("SELECT 1")) == 1
    finally:
        await database.close()
    assert not pooled.unknown
    assert not [line for line in logs if line["event"] == "session settings lost"]


async def test_settings_that_a_pooler_dropped_go_with_each_transaction(
    core_urls: ServiceUrls,
) -> None:
    """The database's default is what the session asked for: that says nothing of the others."""
    async with pooler(core_urls.runtime) as running:
        database = open_pools(running.url(core_urls.runtime), application_name="t", pool_size=4)
        try:
            with capture_logs() as logs:
                for _ in range(2):
                    await check_ready(database, schema=SCHEMA)
                    database.probe.close()
            assert await limits(database) == OWN_LIMITS
        finally:
            await database.close()
    (line,) = [line for line in logs if line["event"] == "session settings lost"]
    assert "lock_timeout, statement_timeout" in line["reason"]
    assert "TALLY_POOLER=transaction" in line["reason"]
    assert "lock_timeout" in running.unknown


async def test_a_pooler_that_refuses_settings_is_told_with_the_remedy(
    core_urls: ServiceUrls,
) -> None:
    async with pooler(core_urls.runtime, refuses=True) as running:
        database = open_pools(running.url(core_urls.runtime), application_name="t", pool_size=4)
        try:
            with refused("unsupported startup parameter: ", "set TALLY_POOLER=transaction"):
                await check_ready(database, schema=SCHEMA)
        finally:
            await database.close()


async def test_a_pooler_without_prepared_statements_is_refused(core_urls: ServiceUrls) -> None:
    """The stand-in passes their names on, as PgBouncer did before 1.21."""
    async with pooler(core_urls.runtime, renames=False) as running:
        database = open_pools(
            running.url(core_urls.runtime), application_name="t", pool_size=4, pooler="transaction"
        )
        try:
            with refused("max_prepared_statements", "1.21"):
                await check_ready(database, schema=SCHEMA)
        finally:
            await database.close()


async def test_migrate_refuses_a_database_that_takes_no_writes(
    core_urls: ServiceUrls, databases: Databases
) -> None:
    databases.server.run_sql(
        f'ALTER DATABASE "{name_of(core_urls)}" SET default_transaction_read_only = on'
    )
    with refused("default_transaction_read_only is on"):
        await migrate(core_urls.owner, VERSIONS)


async def test_migrate_refuses_a_pooler(core_urls: ServiceUrls) -> None:
    async with pooler(core_urls.owner) as running:
        with refused("leads through a pooler"):
            await migrate(running.url(core_urls.owner), VERSIONS)


async def test_a_direct_session_asks_for_everything_and_loses_nothing(database: Database) -> None:
    with capture_logs() as logs:
        await check_ready(database, schema=SCHEMA)
    assert not [line for line in logs if line["event"] == "session settings lost"]
    assert not database.transaction_settings.enabled
    assert await limits(database) == OWN_LIMITS
