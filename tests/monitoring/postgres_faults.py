"""Faults of a PostgreSQL server and of its standby. Each lasts as long as its block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import asyncpg
from sqlalchemy.engine import make_url

from deploy.local.postgres import PostgresServer
from tests.monitoring.servers import Servers
from tests.support.time_limits import LONG_S

CONNECTIONS: Final = 260
"""Of the 300 that the server allows."""
BEHIND_MIB: Final = 70
"""More than the rule's 64 MiB."""
BOTH_UNITS: Final = (
    'count(ALERTS{alertname="TallyPostgresReplicationLag",alertstate="firing"}) == 2'
)
"""Seconds, as the standby reports them, and bytes, as the primary does."""


@asynccontextmanager
async def _session(
    servers: Servers, database: str = "postgres", **settings: str
) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A superuser's session on the primary, of a program with these settings."""
    url = make_url(servers.primary.admin_url).set(database=database)
    address = url.render_as_string(hide_password=False)
    connection = await asyncpg.connect(address, server_settings=settings, timeout=LONG_S)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def connections_leaked(servers: Servers) -> AsyncIterator[None]:
    """A program never closes its connections."""
    async with AsyncExitStack() as exits:
        for _ in range(CONNECTIONS):
            leaked = _session(servers, "tally_order", application_name="nightly report")
            await exits.enter_async_context(leaked)
        yield


@asynccontextmanager
async def transaction_forgotten(servers: Servers) -> AsyncIterator[None]:
    """A person has gone home in the middle of a transaction."""
    async with _session(servers, "tally_order", application_name="psql of olga") as session:
        transaction = session.transaction()
        await transaction.start()
        await session.execute("CREATE TABLE half_done ()")
        try:
            yield
        finally:
            await transaction.rollback()


@asynccontextmanager
async def replay_paused(servers: Servers) -> AsyncIterator[None]:
    """A standby receives what it does not replay, as behind a long query."""
    await asyncio.to_thread(servers.standby.run_sql, "SELECT pg_wal_replay_pause()")
    try:
        async with _session(servers) as session:
            await write_wal(session, BEHIND_MIB)
        assert await servers.until_holds(BOTH_UNITS)
        yield
    finally:
        await asyncio.to_thread(servers.standby.run_sql, "SELECT pg_wal_replay_resume()")


@asynccontextmanager
async def slot_abandoned(servers: Servers) -> AsyncIterator[None]:
    """A standby is gone for good; its slot keeps the WAL, until a person drops it."""
    async with _session(servers) as session:
        await session.execute("SELECT pg_create_physical_replication_slot('gone', true)")
        try:
            await _fill(servers, session, to=0.4)
            assert await servers.until_holds(servers.disk_fills)
            await _fill(servers, session, to=0.1)
            yield
        finally:
            # The page's remedy.
            await session.execute("SELECT pg_drop_replication_slot('gone')")
            await session.execute("CHECKPOINT")


@asynccontextmanager
async def server_killed(servers: Servers) -> AsyncIterator[None]:
    """It crashes, and is started later."""
    crash(servers.primary)
    try:
        yield
    finally:
        servers.primary.start()


def crash(server: PostgresServer) -> None:
    """End a server at once. It can be started again, at the same address."""
    assert server.child is not None
    server.child.stop(server.kill_signal)
    server.child = None


async def _fill(servers: Servers, session: asyncpg.Connection[Any], *, to: float) -> None:
    """Write until no more than this part of the volume is free."""
    while servers.volume.free() > to:
        await write_wal(session, 4)
        await asyncio.sleep(0.2)


async def write_wal(session: asyncpg.Connection[Any], size_mib: int) -> None:
    """Write as much into the log, and nothing into a table.

    In a transaction: from the time of the last COMMIT that was replayed the exporter takes the lag.
    """
    await session.execute(
        "SELECT pg_logical_emit_message(true, 'fill', repeat('x', 1048576))"
        f" FROM generate_series(1, {size_mib})"
    )
