"""The four services through a real PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from balance_service.settings import BalanceSettings
from balance_service.tables import SCHEMA
from common.db.connections import SERVER_SETTINGS
from common.db.database import LANE_LOCK_TIMEOUT_MS, open_pools
from common.db.migrations import migrate
from common.db.readiness import NotReady, check_ready
from common.db.server_settings import UnsuitableServer
from common.service import migrations_of
from common.setting_types import Pooler
from deploy.audit.audit import audit
from deploy.audit.sources import Sources
from deploy.audit.table import as_text
from deploy.local.gateway.simulator import GatewaySimulator
from tests.faults.stack import beside
from tests.pooler.pgbouncer import PgBouncer
from tests.support.databases import Databases, StackDatabases
from tests.support.payments import until
from tests.support.sale import assert_all_sold, sale
from tests.support.stack import Wire, running_stack

ORDERS: Final = 20
IGNORED: Final = {
    "ignore_startup_parameters": "lock_timeout, statement_timeout, plan_cache_mode, jit,"
    " idle_in_transaction_session_timeout, default_transaction_isolation, enable_seqscan,"
    f" enable_hashjoin, enable_mergejoin, random_page_cost, {', '.join(SERVER_SETTINGS)}"
}
FORGETS: Final = {"max_prepared_statements": "0"}
LOSE: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '%runtime'
"""
LIVE_SAGAS: Final = """
SELECT count(*) FROM sagas WHERE state NOT IN ('COMPLETED', 'COMPENSATED', 'RESOLVED')
"""
MAY_BE_TRIED_AGAIN: Final = {"DATABASE_UNAVAILABLE", "GATEWAY_UNAVAILABLE", "PAYMENT_IN_PROGRESS"}
REFUSED: Final = "unsupported startup parameter: .* set TALLY_POOLER=transaction"


@contextmanager
def pooled_databases(databases: Databases, pgbouncer: PgBouncer) -> Iterator[StackDatabases]:
    """Databases of which the runtime's addresses lead through PgBouncer."""
    with databases.clone_all() as cloned:
        urls = {
            service: replace(direct, runtime=pgbouncer.url(direct.runtime))
            for service, direct in cloned.urls.items()
        }
        yield StackDatabases(urls, cloned.server)


@pytest.mark.parametrize(
    ("pooler", "pgbouncer"), [("transaction", {}), ("none", IGNORED)], indirect=["pgbouncer"]
)
async def test_a_sale_through_pgbouncer_is_paid_and_audited(
    pooler: Pooler,
    pgbouncer: PgBouncer,
    databases: Databases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without TALLY_POOLER, the check at start finds that PgBouncer ignores settings."""
    monkeypatch.setenv("TALLY_POOLER", pooler)
    record = tmp_path / "gateway.db"
    with (
        GatewaySimulator(record, slow_ms=400) as gateway,
        pooled_databases(databases, pgbouncer) as pooled,
    ):
        async with running_stack(pooled, gateway, "", Wire()) as stack:
            await assert_all_sold(stack, ORDERS)
        urls = {service: each.audit for service, each in pooled.urls.items()}
        report = await audit(Sources(urls, record))
    assert report.holds, as_text(report, details=True)


async def test_the_books_hold_after_a_sale_in_which_sessions_are_lost(
    pgbouncer: PgBouncer, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the server, and of PgBouncer. Who is not served learns that it may try again."""
    monkeypatch.setenv("TALLY_POOLER", "transaction")
    record = tmp_path / "gateway.db"
    with GatewaySimulator(record) as gateway, pooled_databases(databases, pgbouncer) as pooled:
        async with running_stack(pooled, gateway, "", Wire()) as stack:
            async with beside(lose_sessions(pooled, pgbouncer)):
                results = await sale(stack, ORDERS)
            assert set(results.refusals) <= MAY_BE_TRIED_AGAIN
            await until(lambda: pooled.sql("order", LIVE_SAGAS), lambda count: not int(count))
        urls = {service: each.audit for service, each in pooled.urls.items()}
        report = await audit(Sources(urls, record))
    assert report.holds, as_text(report, details=True)


async def lose_sessions(pooled: StackDatabases, pgbouncer: PgBouncer) -> None:
    """From the first customer on: end those of the server, five times; then PgBouncer's too."""
    await until(lambda: pooled.sql("balance", "SELECT count(*) FROM accounts"), int)
    while True:
        for _ in range(5):
            await asyncio.to_thread(pooled.server.run_sql, LOSE)
            await asyncio.sleep(0.1)
        await asyncio.to_thread(pgbouncer.restart)


async def test_settings_go_with_a_transaction_and_end_with_it(
    pgbouncer: PgBouncer, databases: Databases
) -> None:
    with databases.clone("balance") as urls:
        database = open_pools(
            pgbouncer.url(urls.runtime), application_name="t", pool_size=4, pooler="transaction"
        )
        shown = sa.text("SHOW lock_timeout")
        try:
            await check_ready(database, schema=SCHEMA)
            async with database.transactions.begin(database.lanes) as connection:
                assert await connection.scalar(shown) == f"{LANE_LOCK_TIMEOUT_MS}ms"
            async with database.reads.connect() as connection:
                assert await connection.scalar(shown) == "0"
        finally:
            await database.close()


@pytest.mark.parametrize(
    ("pooler", "pgbouncer", "reason"),
    [("transaction", FORGETS, "max_prepared_statements above 0"), ("none", {}, REFUSED)],
    indirect=["pgbouncer"],
)
async def test_what_pgbouncer_does_not_do_is_told_with_the_remedy(
    pooler: Pooler, pgbouncer: PgBouncer, reason: str, databases: Databases
) -> None:
    with databases.clone("balance") as urls:
        database = open_pools(
            pgbouncer.url(urls.runtime), application_name="t", pool_size=4, pooler=pooler
        )
        try:
            with pytest.raises(NotReady, match=reason):
                await check_ready(database, schema=SCHEMA)
        finally:
            await database.close()


async def test_migrate_through_pgbouncer_is_refused(
    pgbouncer: PgBouncer, databases: Databases
) -> None:
    with (
        databases.clone("balance") as urls,
        pytest.raises(UnsuitableServer, match="leads through a pooler"),
    ):
        await migrate(pgbouncer.url(urls.owner), migrations_of(BalanceSettings))
