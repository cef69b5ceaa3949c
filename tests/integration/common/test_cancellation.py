"""A call cancelled at any point leaves no reply and no open transaction to the next call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from common.db.engines import Database
from common.locking.redis import open_redis
from deploy.local.valkey import ValkeyServer

STEPS = 60
"""Turns of the event loop after which a command is cancelled: before it is sent, while its reply
is awaited, while the reply is read, and after its end."""


async def cancelled_after(steps: int, work: Awaitable[Any]) -> bool:
    """Whether ``work`` was cancelled, which happens after so many turns of the event loop."""
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


async def test_the_reply_to_a_cancelled_command_reaches_no_other_caller(redis: Redis) -> None:
    """redis-py #2624, #2665."""
    cancelled = 0
    for steps in range(STEPS):
        cancelled += await cancelled_after(steps, redis.echo("of the cancelled"))
        replies = await asyncio.gather(*(redis.echo(f"{steps}.{number}") for number in range(3)))
        assert replies == [f"{steps}.{number}" for number in range(3)]
    assert cancelled


async def test_the_reply_to_a_cancelled_script_reaches_no_other_caller(redis: Redis) -> None:
    script: Any = redis.register_script("return ARGV[1]")
    await script(args=["known"])
    for steps in range(STEPS):
        await cancelled_after(steps, script(args=["of the cancelled"]))
        assert await script(args=[str(steps)]) == str(steps)


async def test_control_on_a_kept_connection_the_next_caller_gets_the_reply(redis: Redis) -> None:
    """So the client has to close the connection of a cancelled command, and does."""
    pool: Any = redis.connection_pool
    connection = pool.make_connection()
    await connection.connect()
    await connection.send_command("ECHO", "of the cancelled")
    assert await cancelled_after(0, connection.read_response(disconnect_on_error=False))
    await connection.send_command("ECHO", "mine")
    assert await connection.read_response() == "of the cancelled"
    await connection.disconnect()


async def stored(database: Database) -> int:
    async with database.reads.connect() as connection:
        return int((await connection.execute(sa.text("SELECT count(*) FROM numbers"))).scalar_one())


def insert(number: int) -> sa.TextClause:
    return sa.text(f"INSERT INTO numbers VALUES ({number})")


async def test_a_cancelled_transaction_rolls_back_and_frees_its_connection(
    database: Database,
) -> None:
    """On the only connection of its pool, which the next transaction would wait for in vain."""

    async def transaction(begun: asyncio.Event) -> None:
        async with database.begin() as connection:
            await connection.execute(insert(1))
            begun.set()
            await connection.execute(sa.text("SELECT pg_sleep(60)"))

    for _ in range(3):
        begun = asyncio.Event()
        task = asyncio.ensure_future(transaction(begun))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert await stored(database) == 0
    async with database.begin() as connection:
        idle = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )
        assert (await connection.execute(idle)).scalar_one() == 0
        await connection.execute(insert(1))
    assert await stored(database) == 1


async def test_a_transaction_cancelled_anywhere_is_whole_or_nothing(database: Database) -> None:
    async def two_rows(number: int) -> None:
        async with database.begin() as connection:
            await connection.execute(insert(number))
            await connection.execute(insert(number + 1))

    cancelled = 0
    for steps in range(STEPS):
        before = await stored(database)
        cancelled += await cancelled_after(steps, two_rows(2 * steps))
        assert await stored(database) - before in {0, 2}
    assert cancelled
    await two_rows(2 * STEPS)
