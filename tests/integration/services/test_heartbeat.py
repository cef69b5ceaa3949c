"""The heartbeat of a service's database, which the audit takes ages against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import sqlalchemy as sa
from asyncpg import PostgresError

from common.db.database import Database, open_pools
from common.db.heartbeat import INTERVAL_S, PAUSE_S, RUNS_MAX, heartbeat_job
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases, name_of


@pytest.fixture(params=["order", "payment"])
def urls(databases: Databases, request: pytest.FixtureRequest) -> Iterator[ServiceUrls]:
    with databases.clone(request.param) as urls:
        yield urls


@pytest.fixture
async def database(urls: ServiceUrls) -> AsyncIterator[Database]:
    opened = open_pools(urls.runtime, application_name="test", pool_size=4)
    yield opened
    await opened.close()


async def beat(database: Database) -> None:
    await heartbeat_job(database).run(asyncio.Event())


async def row(database: Database) -> tuple[float, int, int, int]:
    """The seconds in which the service ran, in how many runs, its last beat, and which transaction
    wrote the row."""
    async with database.begin() as connection:
        statement = (
            "SELECT (SELECT extract(epoch FROM sum(upper(run) - lower(run)))::float"
            " FROM unnest(runs) AS run), (SELECT count(*) FROM unnest(runs)),"
            " extract(epoch FROM beat_time)::bigint, xmin::text::bigint FROM heartbeat"
        )
        found = (await connection.execute(sa.text(statement))).one()
    return found[0], found[1], found[2], found[3]


def age(server: PostgresServer, urls: ServiceUrls, seconds: float) -> None:
    """Let the last beat be ``seconds`` ago."""
    server.run_sql(
        f"UPDATE heartbeat SET beat_time = now() - interval '{seconds} seconds',"
        f" runs = tstzmultirange(tstzrange(now() - interval '{seconds + 100} seconds',"
        f" now() - interval '{seconds} seconds'))",
        database=name_of(urls),
    )


async def test_replicas_together_write_once_in_an_interval(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    age(postgres_server, urls, INTERVAL_S + 1)
    before = await row(database)
    await asyncio.gather(*(beat(database) for _ in range(8)))
    after = await row(database)
    assert after[3] != before[3]
    await beat(database)
    assert await row(database) == after


@pytest.mark.parametrize(("since_s", "runs_on"), [(PAUSE_S - 5, True), (PAUSE_S + 5, False)])
async def test_time_without_a_beat_counts_unless_it_is_a_pause(
    database: Database,
    urls: ServiceUrls,
    postgres_server: PostgresServer,
    since_s: float,
    *,
    runs_on: bool,
) -> None:
    age(postgres_server, urls, since_s)
    await beat(database)
    ran_s, runs, *_ = await row(database)
    assert runs == 1
    assert (ran_s > 100) is runs_on


async def test_runs_before_and_after_a_pause_add_up(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    age(postgres_server, urls, 3_600)
    await beat(database)
    postgres_server.run_sql(
        "UPDATE heartbeat SET beat_time = beat_time - interval '10 seconds'",
        database=name_of(urls),
    )
    await beat(database)
    ran_s, runs, *_ = await row(database)
    assert runs == 2
    assert 110 <= ran_s < 3_600


async def test_only_the_newest_runs_are_kept(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    postgres_server.run_sql(
        "UPDATE heartbeat SET beat_time = now() - interval '1 hour', runs = ("
        "SELECT range_agg(tstzrange(day, day + interval '1 minute'))"
        f" FROM generate_series(now() - interval '{RUNS_MAX + 50} days', now() - interval '1 day',"
        " interval '1 day') AS day)",
        database=name_of(urls),
    )
    ran_s, *_ = await row(database)
    assert ran_s == (RUNS_MAX + 50) * 60
    await beat(database)
    ran_s, runs, *_ = await row(database)
    assert (ran_s, runs) == ((RUNS_MAX - 1) * 60, RUNS_MAX - 1)


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
        with pytest.raises(PostgresError):
            async with database.begin() as connection:
                await connection.execute(sa.text(statement))
