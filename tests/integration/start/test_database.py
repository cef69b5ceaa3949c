"""A replica without a usable database says why, waits, and serves nothing meanwhile."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

from common.db.database import CLOSE_S, open_pools
from common.db.errors import READY_TIMEOUT_S
from common.db.migrations import migrate
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.services import (
    at_port,
    database_of,
    every_service,
    server_of,
    started,
    variable,
    with_password,
)
from tests.support.databases import ROOT
from tests.support.fake_server import TcpProxy

IDLE = 10


@every_service
async def test_a_replica_waits_for_its_database_and_then_for_its_schema(
    service: str, empty: ServiceUrls, unused_tcp_port: int
) -> None:
    """Redis, the other services and the gateway are away all the time, which changes nothing."""
    setting = variable(service)
    url, address = at_port(empty.runtime, unused_tcp_port), f"127.0.0.1:{unused_tcp_port}"
    async with started(service, url) as (running, calling):
        reason = (await running.line("not ready"))["reason"]
        assert reason == f"{setting}: no answer from {address}: Connection refused"
        await calling.assert_refuses()

        async with TcpProxy.to(server_of(empty.runtime), unused_tcp_port):
            reason = (await running.line("not ready"))["reason"]
            assert reason.startswith(f"{setting}: database test_{service}_empty has no schema yet")
            await calling.assert_refuses()

            await migrate(empty.owner, ROOT / f"{service}_service" / "migrations")
            await running.line("ready")
            assert await calling.health() == "SERVING"
            await calling.assert_serves()
            # Before the proxy ends: a probe after that says again that the connection is refused.
            log = "".join(running.lines)
    lines = [json.loads(line) for line in log.splitlines() if '"not ready"' in line]
    reasons = [line["reason"] for line in lines]
    # A probe may have found the schema between two revisions.
    assert len(reasons) == len(set(reasons)) >= 2, "each reason is logged once"
    assert "".join(running.lines).count("TALLY_REDIS_URL: ") == 1


async def test_a_wrong_password_is_reported_with_the_setting_and_the_role(
    migrated: ServiceUrls,
) -> None:
    async with started("balance", with_password(migrated.runtime)) as (running, calling):
        reason = (await running.line("not ready"))["reason"]
        problem = 'password authentication failed for user "tally_balance_runtime"'
        assert reason == f"{variable('balance')}: {problem}"
        await calling.assert_refuses()


@every_service
async def test_an_older_schema_is_waited_for_and_a_newer_one_is_served(
    service: str, migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    database = database_of(migrated.runtime)

    def set_revision(number: str) -> None:
        sql = f"UPDATE alembic_version SET version_num = '{service}_{number}'"
        postgres_server.run_sql(sql, database)

    set_revision("0000")
    async with started(service, migrated.runtime) as (running, calling):
        reason = (await running.line("not ready"))["reason"]
        age = f"the schema of database {database} is at {service}_0000"
        assert reason.startswith(f"{variable(service)}: {age}")
        assert "run migrate" in reason
        await calling.assert_refuses()
        set_revision("9999")
        await running.line("ready")
        await calling.assert_serves()


async def test_a_database_that_falls_silent_is_noticed_and_waited_for(
    migrated: ServiceUrls, unused_tcp_port: int
) -> None:
    """Its connections stay open, and nothing comes over them."""
    url = at_port(migrated.runtime, unused_tcp_port)
    async with (
        TcpProxy.to(server_of(migrated.runtime), unused_tcp_port) as proxy,
        started("balance", url) as (running, calling),
    ):
        await running.line("ready")
        proxy.forwards.clear()
        reason = (await running.line("not ready"))["reason"]
        silent = f"no answer from {proxy.address} within {READY_TIMEOUT_S:g} s"
        assert reason == f"TALLY_BALANCE_DATABASE_URL: {silent}"
        assert await calling.health() == "NOT_SERVING"
        assert await calling.health("liveness") == "SERVING"
        proxy.forwards.set()
        await running.line("ready")
        await calling.assert_serves()


async def test_connections_to_a_silent_database_are_closed_in_time(
    migrated: ServiceUrls, unused_tcp_port: int
) -> None:
    url = at_port(migrated.runtime, unused_tcp_port)
    async with TcpProxy.to(server_of(migrated.runtime), unused_tcp_port) as proxy:
        database = open_pools(url, application_name="test", pool_size=31)
        async with AsyncExitStack() as stack:
            for _ in range(IDLE):
                await stack.enter_async_context(database.reads.connect())
        proxy.forwards.clear()
        # The driver alone takes seconds for each of them, one after the other.
        async with asyncio.timeout(IDLE * CLOSE_S):
            await database.close()


async def test_a_database_that_takes_no_writes_is_reported_and_waited_for(
    migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    name, database = "default_transaction_read_only", database_of(migrated.runtime)
    postgres_server.run_sql(f'ALTER DATABASE "{database}" SET {name} = on')
    async with started("balance", migrated.runtime) as (running, calling):
        reason = (await running.line("not ready"))["reason"]
        assert reason.startswith("TALLY_BALANCE_DATABASE_URL: 127.0.0.1:")
        assert reason.endswith(f" takes no writes: a hot standby, or {name} is on")
        await calling.assert_refuses()
        postgres_server.run_sql(f'ALTER DATABASE "{database}" RESET {name}')
        await running.line("ready")
        await calling.assert_serves()


async def test_a_server_that_may_lose_commits_is_reported_once(migrated: ServiceUrls) -> None:
    """The tests' own server runs without fsync."""
    async with started("balance", migrated.runtime) as (running, _):
        reason = (await running.line("database not durable"))["reason"]
        assert reason.startswith("fsync is off: ")
        await running.line("ready")
    assert "".join(running.lines).count("fsync is off") == 1
