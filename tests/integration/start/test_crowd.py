"""A replica with more callers than places and more readers than connections stays in service."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.process import process
from tests.integration.start.services import Client, client, environment
from tests.support.databases import Databases

PLACES = 30
CALLERS = 2 * PLACES
PROBES = 20
REFUSED_S = 0.5
"""The pause that a refusal asks for."""
PROBED = """
SELECT query_start FROM pg_stat_activity
WHERE datname = $1 AND application_name LIKE '%probe' AND query_start IS NOT NULL
"""


@pytest.fixture
def migrated(databases: Databases) -> Iterator[ServiceUrls]:
    """A database of the balance service."""
    with databases.clone("balance") as urls:
        yield urls


@asynccontextmanager
async def held(urls: ServiceUrls) -> AsyncIterator[None]:
    """Whoever reads an account waits for it, and has its connection meanwhile."""
    holder = await asyncpg.connect(urls.owner, timeout=30)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await holder.close()


@asynccontextmanager
async def crowd(asking: Client, told: Counter[str]) -> AsyncIterator[None]:
    """Callers who come again and again, and how each call ended."""
    done = asyncio.Event()

    async def call() -> None:
        while not done.is_set():
            told[await asking.reason()] += 1
            await asyncio.sleep(REFUSED_S)

    calling = [asyncio.create_task(call()) for _ in range(CALLERS)]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*calling)


async def test_a_replica_is_ready_while_readers_crowd_and_calls_are_refused(
    migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    given = environment("balance", migrated.runtime)
    given["TALLY_MAX_CONCURRENT_CALLS"] = str(PLACES)
    looking = await asyncpg.connect(postgres_server.admin_url, timeout=30)
    told: Counter[str] = Counter()
    states: Counter[str] = Counter()
    probed: set[object] = set()
    async with process("balance_service", **given) as running:
        port = (await running.line("listening"))["port"]
        await running.line("ready")
        async with client("balance", port) as asking, held(migrated), crowd(asking, told):
            while len(probed) < PROBES or not told["OVERLOADED"]:
                states[await asking.health()] += 1
                assert await asking.health("liveness") == "SERVING"
                probed.add(await looking.fetchval(PROBED, make_url(migrated.runtime).database))
                await asyncio.sleep(0.05)
        status, _ = await running.stop()
    await looking.close()
    assert status == 0
    # A machine that stalls may make a probe or two late. Where probes queue behind the readers, all
    # of them are.
    assert states["SERVING"] > states.total() / 2, states
