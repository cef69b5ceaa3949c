"""Key locks of two replicas on one Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from redis.asyncio import Redis

from common.ids import new_id
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from deploy.local.valkey import ValkeyServer
from tests.support.databases import Databases, name_of
from tests.support.waits import until_true


@pytest.fixture
def key() -> str:
    return f"lock:{new_id()}"


@pytest.fixture
async def redis(valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def replicas(
    valkey_server: ValkeyServer, slow_machine: None
) -> AsyncIterator[list[KeyLocks]]:
    """Two replicas that wait by handoff."""
    async with AsyncExitStack() as exits:
        opened = [
            await exits.enter_async_context(
                open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF)
            )
            for _ in range(2)
        ]
        for locks in opened:
            await until_true(locks._channel_ready)
        yield opened


async def settled(*replicas: KeyLocks) -> None:
    """Until nobody holds or waits, and no release is in flight."""
    await until_true(lambda: not any(len(locks._tasks) for locks in replicas))


# -- a database whose writes compare the fence ---------------------------------------------------

TABLE = """
CREATE TABLE counted (key text PRIMARY KEY, number bigint NOT NULL, fence bigint NOT NULL);
GRANT SELECT, INSERT, UPDATE ON counted TO tally_balance_runtime;
"""


@pytest.fixture
def counted(databases: Databases) -> Iterator[str]:
    """The URL of a database with the table of ``worker``."""
    with databases.clone("balance") as urls:
        databases.server.run_sql(TABLE, database=name_of(urls))
        yield urls.runtime


@asynccontextmanager
async def counting(url: str, key: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to ``counted``, with a row for the key."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("INSERT INTO counted VALUES ($1, 0, 0)", key)
        yield connection
    finally:
        await connection.close()
