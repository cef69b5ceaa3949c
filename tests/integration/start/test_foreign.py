"""A database that is another service's, or of an older kind: neither served from nor migrated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import make_url

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.process import process
from tests.integration.start.services import (
    SERVICES,
    assert_ends_well,
    assert_refuses,
    environment,
    started,
)
from tests.support.databases import Databases

FAILED = 1
OTHER = dict(zip(SERVICES, (*SERVICES[1:], SERVICES[0]), strict=True))
every_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def others(databases: Databases, service: str) -> Iterator[ServiceUrls]:
    """A migrated database of another service."""
    with databases.clone(OTHER[service]) as urls:
        yield urls


@pytest.fixture
def early(databases: Databases, postgres_server: PostgresServer) -> Iterator[ServiceUrls]:
    """A database of the balance service whose revision names no service."""
    with databases.clone("balance") as urls:
        database = make_url(urls.owner).database or ""
        postgres_server.run_sql("UPDATE alembic_version SET version_num = '0001'", database)
        yield urls


def told_of(url: str, service: str, postgres_server: PostgresServer) -> str:
    database = make_url(url).database or ""
    found = postgres_server.run_sql("SELECT version_num FROM alembic_version", database).strip()
    assert found.startswith(f"{OTHER[service]}_")
    return f"database {database} is not {service}'s, its schema is {found}: name {service}'s own"


async def last_line_of_migrating(service: str, url: str) -> str:
    given = environment(service, "") | {f"TALLY_{service.upper()}_OWNER_DATABASE_URL": url}
    async with process(f"{service}_service", "migrate", **given) as running:
        status, told = await running.end()
    assert status == FAILED, told
    assert "Traceback" not in told
    assert (make_url(url).password or "?") not in told
    return told.splitlines()[-1]


@every_service
async def test_on_another_services_database_a_replica_says_so_and_serves_nothing(
    service: str, others: ServiceUrls, postgres_server: PostgresServer
) -> None:
    """With the other's own address, role and all: whatever it asks for there, it may."""
    expected = told_of(others.runtime, service, postgres_server)
    async with started(service, others.runtime) as (running, asking):
        reason = (await running.line("not ready"))["reason"]
        assert reason == f"TALLY_{service.upper()}_DATABASE_URL: {expected}"
        await assert_refuses(asking)
        await assert_ends_well(running, others.runtime)


@every_service
async def test_another_services_database_is_not_migrated(
    service: str, others: ServiceUrls, postgres_server: PostgresServer
) -> None:
    expected = told_of(others.owner, service, postgres_server)
    told = await last_line_of_migrating(service, others.owner)
    assert told == f"TALLY_{service.upper()}_OWNER_DATABASE_URL: {expected}"


async def test_what_was_made_before_the_first_release_is_told_with_what_to_do(
    early: ServiceUrls,
) -> None:
    """As `make up` finds it where an older state of the code was tried."""
    database = make_url(early.owner).database
    expected = (
        f"database {database} has a schema of before the first release (revision 0001): drop it "
        "and migrate again; if `make up` made it, remove .tally/data"
    )
    told = await last_line_of_migrating("balance", early.owner)
    assert told == f"TALLY_BALANCE_OWNER_DATABASE_URL: {expected}"
    async with started("balance", early.runtime) as (running, asking):
        reason = (await running.line("not ready"))["reason"]
        assert reason == f"TALLY_BALANCE_DATABASE_URL: {expected}"
        await assert_refuses(asking)
        await assert_ends_well(running, early.runtime)
