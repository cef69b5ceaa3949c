"""Sessions that end behind PgBouncer, or at it: between transactions, under one, and at COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import pytest
import sqlalchemy as sa

from common.batching.outcomes import Outcome
from common.db.database import Database, open_pools
from common.db.pool import Pool
from common.db.repeat import in_transaction, read
from common.db.statements import Connection
from common.errors import DatabaseUnavailable
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.common.conftest import NUMBERS as TABLE
from tests.integration.common.lanes import Insert, Inserts, lane_of
from tests.integration.common.test_sessions import AT_COMMIT, insert, numbers
from tests.pooler.pgbouncer import PgBouncer
from tests.support.databases import Databases, name_of

SESSIONS: Final = 2
"""Of each pool."""
TIMES: Final = 3
Lose = Callable[[], object]
every_loss = pytest.mark.parametrize("loss", ["of the server", "of the pooler", "of both"])


@pytest.fixture
def urls(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("balance") as cloned:
        databases.server.run_sql(TABLE, database=name_of(cloned))
        yield cloned


@pytest.fixture
async def database(urls: ServiceUrls, pgbouncer: PgBouncer) -> AsyncIterator[Database]:
    opened = open_pools(
        pgbouncer.url(urls.runtime),
        application_name="pooled",
        pool_size=3 * SESSIONS + 1,
        pooler="transaction",
    )
    yield opened
    await opened.close()


@pytest.fixture
def lose(
    urls: ServiceUrls, pgbouncer: PgBouncer, postgres_server: PostgresServer, loss: str
) -> Lose:
    """Ends every session of the database."""
    sql = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        f" WHERE usename LIKE '%runtime' AND datname = '{name_of(urls)}'"
    )

    def losing() -> None:
        if loss != "of the pooler":
            ended = postgres_server.run_sql(sql)
            assert "t" in ended.split()
        if loss != "of the server":
            pgbouncer.restart()

    return losing


async def fill(of: Pool) -> None:
    """Open every session of the pool, and prepare a statement in each."""
    async with AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            await numbers(await stack.enter_async_context(of.connect()))


@every_loss
async def test_work_survives_what_was_lost_between_transactions(
    database: Database, lose: Lose
) -> None:
    lane = lane_of(database, Inserts())
    for number in range(TIMES):
        for of in (database.lanes, database.waiting, database.reads):
            await fill(of)
        await asyncio.to_thread(lose)
        _, stored = await asyncio.gather(
            read(database, numbers),
            in_transaction(database, "other", partial(insert, number=number)),
        )
        assert number in stored
        assert await lane.submit(Insert(100 + number)) == -(100 + number)


@every_loss
async def test_work_survives_what_was_lost_under_its_transaction(
    database: Database, lose: Lose
) -> None:
    """It has had no effect, and runs again; a batch of a lane too."""
    lost: set[str] = set()

    async def lose_once(where: str) -> None:
        if where not in lost:
            lost.add(where)
            await asyncio.to_thread(lose)

    async def work(connection: Connection) -> list[int]:
        await insert(connection)
        await lose_once("transaction")
        return await numbers(connection)

    async def reading(connection: Connection) -> list[int]:
        await numbers(connection)
        await lose_once("read")
        return await numbers(connection)

    class Losing(Inserts):
        async def __call__(
            self, connection: Connection, commands: Sequence[Insert], *, wait_for_locks: bool
        ) -> Sequence[Outcome[int]]:
            outcomes = await super().__call__(connection, commands, wait_for_locks=wait_for_locks)
            await lose_once("lane")
            return outcomes

    assert await in_transaction(database, "other", work) == [7]
    assert await lane_of(database, Losing()).submit(Insert(8)) == -8
    assert sorted(await read(database, reading)) == [7, 8]
    assert lost == {"transaction", "lane", "read"}


async def test_a_loss_at_commit_is_repeated_only_where_that_is_idempotent(
    database: Database, urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    """PgBouncer tells neither that the server committed nor that it did not."""
    postgres_server.run_sql(AT_COMMIT, name_of(urls))
    with pytest.raises(DatabaseUnavailable):
        await in_transaction(database, "other", insert)
    postgres_server.run_sql("ALTER SEQUENCE commits RESTART", name_of(urls))
    assert await in_transaction(database, "other", insert, idempotent=True) == [7]


async def test_prepared_statements_that_pgbouncer_forgets_are_prepared_again(
    database: Database, urls: ServiceUrls, pgbouncer: PgBouncer
) -> None:
    """Another client sends DISCARD ALL: the server's session has no statements then."""
    await fill(database.reads)
    other = open_pools(
        pgbouncer.url(urls.runtime), application_name="other", pool_size=4, pooler="transaction"
    )
    try:
        async with other.reads.connect() as connection:
            await connection.execute(sa.text("DISCARD ALL"))
        assert await read(database, numbers) == []
    finally:
        await other.close()
