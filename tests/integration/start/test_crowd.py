"""A replica with more callers than slots and more readers than connections stays ready."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.services import Client, database_of, started

SLOTS = 30
CALLERS = 2 * SLOTS
PROBES = 20
REFUSED_S = 0.5
"""The delay that a refusal asks for."""
PROBED = """
SELECT query_start FROM pg_stat_activity
WHERE datname = $1 AND application_name LIKE '%probe' AND query_start IS NOT NULL
"""


@asynccontextmanager
async def held(urls: ServiceUrls) -> AsyncIterator[None]:
    """A block in which each reader of an account waits for it, and keeps its connection."""
    holder = await asyncpg.connect(urls.owner, timeout=30)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await holder.close()


@asynccontextmanager
async def callers(client: Client, reasons: Counter[str]) -> AsyncIterator[None]:
    """A block in which CALLERS call again and again. ``reasons`` counts how the calls end."""
    done = asyncio.Event()

    async def call() -> None:
        while not done.is_set():
            reasons[await client.reason()] += 1
            await asyncio.sleep(REFUSED_S)

    calling = [asyncio.create_task(call()) for _ in range(CALLERS)]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*calling)


async def test_a_replica_is_ready_while_readers_wait_and_calls_are_refused(
    migrated: ServiceUrls, postgres_server: PostgresServer
) -> None:
    observer = await asyncpg.connect(postgres_server.admin_url, timeout=30)
    reasons: Counter[str] = Counter()
    states: Counter[str] = Counter()
    probed: set[object] = set()
    limit = {"TALLY_MAX_CONCURRENT_CALLS": str(SLOTS)}
    async with started("balance", migrated.runtime, **limit) as (running, client):
        await running.line("ready")
        async with held(migrated), callers(client, reasons):
            while len(probed) < PROBES or not reasons["OVERLOADED"]:
                states[await client.health()] += 1
                assert await client.health("liveness") == "SERVING"
                probed.add(await observer.fetchval(PROBED, database_of(migrated.runtime)))
                await asyncio.sleep(0.05)
    await observer.close()
    # A slow machine may make a few probes late. If probes waited behind the readers, all would be.
    assert states["SERVING"] > states.total() / 2, states
