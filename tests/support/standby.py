"""A synchronous standby that is away: COMMITs wait for it, without a limit, and keep their locks.

Only databases in which ``require`` was called wait; other tests use the same server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from deploy.local.postgres import PostgresServer
from tests.support.time_limits import LONG_S

_WAITING: Final = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = ANY($1)
"""
_COMMITS: Final = """
SELECT array_agg(pid || ' ' || query_start) FROM pg_stat_activity
 WHERE state = 'active' AND query LIKE 'COMMIT%' AND datname = ANY($1)
"""
_PROBE: Final = "SELECT pg_logical_emit_message(true, 'test', '')"


class Standby:
    """The synchronous standby of some databases of a server."""

    def __init__(self, server: PostgresServer, databases: Iterable[str]) -> None:
        self._server = server
        self._databases = list(databases)

    def require(self) -> None:
        """Let COMMITs of new sessions wait for the standby, whatever the server's default is."""
        for name in self._databases:
            self._server.run_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = on')

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The standby does not answer in the block; at its end the COMMITs that wait return."""
        await self._set("'nobody'")
        try:
            await self._until_commits_wait()
            yield
        finally:
            await self._set("''")
            waited = await self._committing()
            async with asyncio.timeout(LONG_S):
                while waited & await self._committing():  # noqa: ASYNC110 - a server
                    await asyncio.sleep(0.01)

    async def waiting(self) -> int:
        """How many COMMITs wait."""
        return int(await self._ask(_WAITING, self._databases))

    async def until_waiting(self, count: int) -> None:
        """Wait until so many COMMITs wait, or more."""
        async with asyncio.timeout(LONG_S):
            while await self.waiting() < count:  # noqa: ASYNC110 - a server
                await asyncio.sleep(0.01)

    async def _until_commits_wait(self) -> None:
        """The server reads the setting a moment after it was told to."""
        connection = await asyncpg.connect(self._server.admin_url, database=self._databases[0])
        await connection.execute("SET synchronous_commit = on")
        probing = asyncio.create_task(_probe(connection))
        await self.until_waiting(1)
        await self._ask(f"SELECT pg_terminate_backend({connection.get_server_pid()}, 10000)")
        await asyncio.wait({probing})
        assert probing.exception() is not None

    async def _set(self, names: str) -> None:
        await self._ask(f"ALTER SYSTEM SET synchronous_standby_names = {names}")
        await self._ask("SELECT pg_reload_conf()")

    async def _committing(self) -> set[str]:
        """The COMMITs that have not returned."""
        return set(await self._ask(_COMMITS, self._databases) or ())

    async def _ask(self, sql: str, *parameters: Any) -> Any:
        connection = await asyncpg.connect(self._server.admin_url)
        try:
            return await connection.fetchval(sql, *parameters)
        finally:
            await connection.close()


async def _probe(connection: asyncpg.Connection[Any]) -> None:
    while True:
        await connection.execute(_PROBE)
