"""Calls that are cancelled anywhere leave nothing behind for the next: no reply, no transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from common.db.engines import Database, open_engines
from common.locking.redis import open_redis
from deploy.local.postgres import PostgresServer
from deploy.local.valkey import ValkeyServer
from tests.support.databases import Databases

STEPS = 60
"""Turns of the event loop after which a command is cancelled: before it is sent, while its reply
is awaited, while the reply is read, and after its end."""


async def cancelled_after(steps: int, work: Awaitable[Any]) -> bool:
    """Runs ``work`` and cancels it after so many turns; whether it was cancelled."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    return task.cancelled()


@pytest.fixture
async def redis(valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    client = open_redis(valkey_server.url)
    yield client
    await client.aclose()


async def test_a_cancelled_command_hands_its_reply_to_nobody(redis: Redis) -> None:
    """redis-py #2624, #2665."""
    cancelled = 0
    for steps in range(STEPS):
        cancelled += await cancelled_after(steps, redis.echo("of the cancelled"))
        replies = await asyncio.gather(*(redis.echo(f"{steps}.{number}") for number in range(3)))
        assert replies == [f"{steps}.{number}" for number in range(3)]
    assert cancelled


async def test_a_cancelled_script_hands_its_reply_to_nobody(redis: Redis) -> None:
    script: Any = redis.register_script("return ARGV[1]")
    await script(args=["known"])
    for steps in range(STEPS):
        await cancelled_after(steps, script(args=["of the cancelled"]))
        assert await script(args=[str(steps)]) == str(steps)


async def test_control_on_a_connection_that_is_kept_the_next_caller_gets_the_reply(
    redis: Redis,
) -> None:
    """What the client has to do, and does: close the connection that a cancelled command was on."""
    pool: Any = redis.connection_pool
    connection = pool.make_connection()
    await connection.connect()
    await connection.send_command("ECHO", "of the cancelled")
    assert await cancelled_after(0, connection.read_response(disconnect_on_error=False))
    await connection.send_command("ECHO", "mine")
    assert await connection.read_response() == "of the cancelled"
    await connection.disconnect()


@pytest.fixture
def database_url(databases: Databases, postgres_server: PostgresServer) -> Iterator[str]:
    with databases.clone("balance") as urls:
        yield urls.owner


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = open_engines(database_url, application_name="cancelled", pool_size=3)
    async with opened.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE noted (step int)"))
    yield opened
    await opened.close()


async def noted(database: Database) -> int:
    async with database.reads.connect() as connection:
        return int((await connection.execute(sa.text("SELECT count(*) FROM noted"))).scalar_one())


async def transaction(database: Database, begun: Callable[[], None]) -> None:
    async with database.begin() as connection:
        await connection.execute(sa.text("INSERT INTO noted VALUES (1)"))
        begun()
        await connection.execute(sa.text("SELECT pg_sleep(60)"))


async def test_a_deadline_in_a_transaction_undoes_it_and_frees_its_connection(
    database: Database,
) -> None:
    """On the only connection of its pool: whoever comes next would wait for it in vain."""
    for _ in range(3):
        begun = asyncio.Event()
        task = asyncio.ensure_future(transaction(database, begun.set))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert await noted(database) == 0
    async with database.begin() as connection:
        idle = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )
        assert (await connection.execute(idle)).scalar_one() == 0
        await connection.execute(sa.text("INSERT INTO noted VALUES (2)"))
    assert await noted(database) == 1


async def test_a_transaction_cancelled_anywhere_is_whole_or_nothing(database: Database) -> None:
    async def two_rows() -> None:
        async with database.begin() as connection:
            await connection.execute(sa.text("INSERT INTO noted VALUES (1)"))
            await connection.execute(sa.text("INSERT INTO noted VALUES (2)"))

    cancelled = 0
    for steps in range(STEPS):
        before = await noted(database)
        cancelled += await cancelled_after(steps, two_rows())
        assert await noted(database) - before in {0, 2}
    assert cancelled
    await two_rows()
