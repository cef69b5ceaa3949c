"""The heartbeat of a service's database, which the audit takes ages against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import sqlalchemy as sa

import order_service.tables
import payment_service.tables
from common.db.engines import Database, open_engines
from common.db.heartbeat import INTERVAL_S, PAUSE_S, heartbeat_job
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases, name_of

TABLES = {"order": order_service.tables.heartbeat, "payment": payment_service.tables.heartbeat}


@pytest.fixture(params=TABLES)
def urls(databases: Databases, request: pytest.FixtureRequest) -> Iterator[ServiceUrls]:
    with databases.clone(request.param) as urls:
        yield urls


@pytest.fixture
async def database(urls: ServiceUrls) -> AsyncIterator[Database]:
    opened = open_engines(urls.runtime, application_name="test", pool_size=4)
    yield opened
    await opened.close()


async def beat(database: Database) -> None:
    table = order_service.tables.heartbeat  # the same in both services
    await heartbeat_job(database, table).run(asyncio.Event())


async def row(database: Database) -> tuple[object, object, int]:
    """When it began and beat, and how often the row was written."""
    async with database.begin() as connection:
        statement = "SELECT begin_time, beat_time, xmin::text::bigint FROM heartbeat"
        found = (await connection.execute(sa.text(statement))).one()
    return found[0], found[1], found[2]


def age(server: PostgresServer, urls: ServiceUrls, seconds: float) -> None:
    """Let the last beat be ``seconds`` ago."""
    server.run_sql(
        f"UPDATE heartbeat SET begin_time = now() - interval '1 day',"
        f" beat_time = now() - interval '{seconds} seconds'",
        database=name_of(urls),
    )


async def test_replicas_together_write_once_in_an_interval(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    age(postgres_server, urls, INTERVAL_S + 1)
    before = await row(database)
    await asyncio.gather(*(beat(database) for _ in range(8)))
    after = await row(database)
    assert after[0] == before[0]
    assert after[2] != before[2]
    await beat(database)
    assert await row(database) == after


async def test_after_a_pause_the_time_begins_anew(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    age(postgres_server, urls, PAUSE_S + 1)
    await beat(database)
    begin, last, _ = await row(database)
    assert begin == last


async def test_a_clock_that_was_set_back_changes_nothing(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    age(postgres_server, urls, -3_600)
    before = await row(database)
    await beat(database)
    assert await row(database) == before


async def test_a_table_has_one_row_for_ever(database: Database) -> None:
    for statement in (
        "INSERT INTO heartbeat DEFAULT VALUES",
        "DELETE FROM heartbeat",
    ):
        with pytest.raises(sa.exc.DBAPIError):
            async with database.begin() as connection:
                await connection.execute(sa.text(statement))
