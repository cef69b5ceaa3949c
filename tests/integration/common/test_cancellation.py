"""A call cancelled at any point leaves no reply and no open transaction to the next call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import sqlalchemy as sa
from redis.asyncio import Redis

from common.db.database import Database

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


async def test_the_reply_to_a_cancelled_command_reaches_no_other_caller(redis: Redis) -> None:
    """Nor that to a cancelled script. redis-py #2624, #2665."""
    script: Any = redis.register_script("return ARGV[1]")
    cancelled = 0
    for steps in range(STEPS):
        cancelled += await cancelled_after(steps, redis.echo("of the cancelled"))
        replies = await asyncio.gather(*(redis.echo(f"{steps}.{number}") for number in range(3)))
        assert replies == [f"{steps}.{number}" for number in range(3)]
        await cancelled_after(steps, script(args=["of the cancelled"]))
        assert await script(args=[str(steps)]) == str(steps)
    assert cancelled


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


def sessions_with(condition: str) -> sa.TextClause:
    """The number of the database's sessions with this condition."""
    of_database = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return sa.text(f"{of_database} AND {condition}")


def insert(number: int) -> sa.TextClause:
    return sa.text(f"INSERT INTO numbers VALUES ({number})")


async def test_a_cancelled_transaction_rolls_back_and_frees_its_connection(
    database: Database,
) -> None:
    """Wherever it is cancelled. The next transaction waits for the only connection of the pool."""

    async def two_rows(number: int, between: str = "SELECT") -> None:
        async with database.begin() as connection:
            await connection.execute(insert(number))
            await connection.execute(sa.text(between))
            await connection.execute(insert(number + 1))

    cancelled = 0
    for steps in range(STEPS):
        before = await stored(database)
        cancelled += await cancelled_after(steps, two_rows(2 * steps))
        assert await stored(database) - before in {0, 2}
    assert cancelled
    before = await stored(database)
    task = asyncio.create_task(two_rows(2 * STEPS, "SELECT pg_sleep(60)"))
    async with database.reads.connect() as connection:
        while not await connection.scalar(sessions_with("wait_event = 'PgSleep'")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await cancelled_after(0, task)
    assert await stored(database) == before
    async with database.begin() as connection:
        assert await connection.scalar(sessions_with("state LIKE 'idle in%'")) == 0
    # The server ends an abandoned statement by itself, and frees its rows.
    async with database.reads.connect() as connection:
        while await connection.scalar(sessions_with("wait_event = 'PgSleep'")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await two_rows(2 * STEPS)
