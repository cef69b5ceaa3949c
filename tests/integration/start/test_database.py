"""A replica whose database is away, shut or not migrated: it says so and waits, serving nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy.engine import make_url

from common.db.engines import CLOSE_S, open_engines
from common.db.errors import READY_TIMEOUT_S
from common.db.migrations import migrate
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.gateway import Gateway
from tests.integration.start.services import (
    PASSWORD,
    SERVICES,
    assert_ends_well,
    assert_refuses,
    started,
)
from tests.support.databases import ROOT, Databases

IDLE = 10
every_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def empty(
    databases: Databases, postgres_server: PostgresServer, service: str
) -> Iterator[ServiceUrls]:
    """A database of the service in which nothing has been made yet."""
    with databases.clone(service):
        pass  # the service's roles exist from here on
    name = f"test_{service}_empty"
    yield postgres_server.create_database(name, service=service)
    postgres_server.drop_database(name)


@pytest.fixture
def migrated(databases: Databases, service: str) -> Iterator[ServiceUrls]:
    with databases.clone(service) as urls:
        yield urls


def behind(url: str, port: int) -> str:
    """The same database by another port."""
    return make_url(url).set(port=port).render_as_string(hide_password=False)


def with_wrong_password(url: str) -> str:
    return make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


@every_service
async def test_a_replica_waits_for_its_database_and_then_for_its_schema(
    service: str, empty: ServiceUrls, unused_tcp_port: int
) -> None:
    """With Redis, the other services and the gateway away all the time, which matters to none."""
    setting = f"TALLY_{service.upper()}_DATABASE_URL"
    gateway = Gateway(unused_tcp_port, make_url(empty.runtime).port or 0)
    url = behind(empty.runtime, gateway.port)
    async with started(service, url) as (running, asking):
        reason = (await running.line("not ready"))["reason"]
        assert reason == f"{setting}: no answer from 127.0.0.1:{gateway.port}: Connection refused"
        await assert_refuses(asking)

        await gateway.open()
        reason = (await running.line("not ready"))["reason"]
        assert reason.startswith(f"{setting}: database test_{service}_empty has no schema yet")
        await assert_refuses(asking)

        await migrate(empty.owner, ROOT / f"{service}_service" / "migrations")
        await running.line("ready")
        assert await asking.health() == "SERVING"
        assert await asking.serves()
        told = await assert_ends_well(running, url)
        await gateway.close()
    lines = [json.loads(line) for line in told.splitlines() if '"not ready"' in line]
    reasons = [line["reason"] for line in lines]
    # Between two of the migration's revisions it may have looked as well.
    assert len(reasons) == len(set(reasons)) >= 2, "each reason is told once"
    assert told.count("TALLY_REDIS_URL: ") == 1


@every_service
async def test_a_wrong_password_is_told_with_the_setting_and_the_role(
    service: str, migrated: ServiceUrls
) -> None:
    url = with_wrong_password(migrated.runtime)
    async with started(service, url) as (running, asking):
        reason = (await running.line("not ready"))["reason"]
        role = f"tally_{service}_runtime"
        said = f'password authentication failed for user "{role}"'
        assert reason == f"TALLY_{service.upper()}_DATABASE_URL: {said}"
        await assert_refuses(asking)
        await assert_ends_well(running, url)


@every_service
async def test_an_older_schema_is_waited_for_and_a_newer_one_is_served(
    service: str, migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    database = make_url(migrated.runtime).database or ""

    def revision(number: str) -> None:
        sql = f"UPDATE alembic_version SET version_num = '{service}_{number}'"
        postgres_server.run_sql(sql, database)

    revision("0000")
    async with started(service, migrated.runtime) as (running, asking):
        reason = (await running.line("not ready"))["reason"]
        setting = f"TALLY_{service.upper()}_DATABASE_URL"
        assert reason.startswith(
            f"{setting}: the schema of database {database} is at {service}_0000"
        )
        assert "run migrate" in reason
        await assert_refuses(asking)
        revision("9999")
        await running.line("ready")
        assert await asking.serves()
        await assert_ends_well(running, migrated.runtime)


@pytest.mark.parametrize("service", ["balance"])
async def test_a_database_that_falls_silent_is_found_out_and_awaited(
    service: str, migrated: ServiceUrls, unused_tcp_port: int
) -> None:
    """Its connections stay, and nothing comes over them: only time tells."""
    gateway = Gateway(unused_tcp_port, make_url(migrated.runtime).port or 0)
    await gateway.open()
    url = behind(migrated.runtime, gateway.port)
    async with started(service, url) as (running, asking):
        await running.line("ready")
        gateway.fall_silent()
        reason = (await running.line("not ready"))["reason"]
        silent = f"no answer from 127.0.0.1:{gateway.port} within {READY_TIMEOUT_S:g} s"
        assert reason == f"TALLY_BALANCE_DATABASE_URL: {silent}"
        assert await asking.health() == "NOT_SERVING"
        assert await asking.health("liveness") == "SERVING"
        gateway.speak()
        await running.line("ready")
        assert await asking.serves()
        await assert_ends_well(running, url)
        await gateway.close()


@pytest.mark.parametrize("service", ["balance"])
async def test_a_silent_database_does_not_keep_its_connections_open(
    service: str, migrated: ServiceUrls, unused_tcp_port: int
) -> None:
    gateway = Gateway(unused_tcp_port, make_url(migrated.runtime).port or 0)
    await gateway.open()
    database = open_engines(
        behind(migrated.runtime, gateway.port), application_name="test", pool_size=31
    )
    async with AsyncExitStack() as stack:
        for _ in range(IDLE):
            await stack.enter_async_context(database.reads.connect())
    gateway.fall_silent()
    # The driver by itself gives each of them seconds, one after the other.
    async with asyncio.timeout(IDLE * CLOSE_S):
        await database.close()
    await gateway.close()


@pytest.mark.parametrize("service", ["balance"])
async def test_a_database_that_takes_no_writes_is_told_and_awaited(
    service: str, migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    url = make_url(migrated.runtime)
    name = "default_transaction_read_only"
    postgres_server.run_sql(f'ALTER DATABASE "{url.database}" SET {name} = on')
    async with started(service, migrated.runtime) as (running, asking):
        reason = (await running.line("not ready"))["reason"]
        told = f"127.0.0.1:{url.port} takes no writes: a hot standby, or {name} is on"
        assert reason == f"TALLY_BALANCE_DATABASE_URL: {told}"
        await assert_refuses(asking)
        postgres_server.run_sql(f'ALTER DATABASE "{url.database}" RESET {name}')
        await running.line("ready")
        assert await asking.serves()
        await assert_ends_well(running, migrated.runtime)


@pytest.mark.parametrize("service", ["balance"])
async def test_a_server_that_may_lose_what_it_committed_is_told_once(
    service: str, migrated: ServiceUrls
) -> None:
    """The tests' own server: it runs without fsync."""
    async with started(service, migrated.runtime) as (running, _):
        reason = (await running.line("database not durable"))["reason"]
        assert reason.startswith("fsync is off: ")
        await running.line("ready")
        told = await assert_ends_well(running, migrated.runtime)
    assert told.count("fsync is off") == 1
