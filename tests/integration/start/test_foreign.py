"""Another service's database, or an old one, is neither served from nor migrated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.services import (
    FAILED,
    SERVICES,
    database_of,
    every_service,
    last_line,
    started,
    variable,
)
from tests.support.databases import Databases

OTHER = dict(zip(SERVICES, (*SERVICES[1:], SERVICES[0]), strict=True))


@pytest.fixture
def others(databases: Databases, service: str) -> Iterator[ServiceUrls]:
    """Another service's database."""
    with databases.clone(OTHER[service]) as urls:
        yield urls


def problem(url: str, service: str, server: PostgresServer) -> str:
    database = database_of(url)
    found = server.run_sql("SELECT version_num FROM alembic_version", database).strip()
    assert found.startswith(f"{OTHER[service]}_")
    return f"database {database} is not {service}'s, its schema is {found}: name {service}'s own"


async def assert_not_served(service: str, url: str, expected: str) -> None:
    async with started(service, url) as (running, calling):
        reason = (await running.line("not ready"))["reason"]
        assert reason == f"{variable(service)}: {expected}"
        await calling.assert_refuses()


async def assert_not_migrated(service: str, url: str, expected: str) -> None:
    name = variable(service, "OWNER_DATABASE_URL")
    assert await last_line(service, FAILED, {name: url}, "migrate") == f"{name}: {expected}"


@every_service
async def test_another_services_database_is_neither_served_from_nor_migrated(
    service: str, others: ServiceUrls, postgres_server: PostgresServer
) -> None:
    """Not even with the other service's role, which has all rights there."""
    expected = problem(others.runtime, service, postgres_server)
    await assert_not_served(service, others.runtime, expected)
    await assert_not_migrated(service, others.owner, expected)


async def test_a_schema_without_a_service_is_reported_with_what_to_do(
    migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    """As `make up` finds it after an older state of the code."""
    database = database_of(migrated.owner)
    postgres_server.run_sql("UPDATE alembic_version SET version_num = '0001'", database)
    expected = (
        f"database {database} has a schema from before the first release (revision 0001): drop it "
        "and migrate again; if `make up` made it, remove .tally/data"
    )
    await assert_not_migrated("balance", migrated.owner, expected)
    await assert_not_served("balance", migrated.runtime, expected)
