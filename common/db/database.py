"""A service's database: its pools, and the time limits of their sessions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import structlog

from common import failpoints
from common.db.bulkheads import Bulkheads
from common.db.connections import SERVER_SETTINGS, Connector, Session
from common.db.pool import Pool
from common.db.server_settings import TransactionSettings
from common.db.statements import Connection
from common.db.transactions import Transactions
from common.environment import file_of, source_of
from common.setting_types import Pooler
from common.settings import ServiceSettings
from common.urls import connect_arguments, engine_url

_PLANS: Final = {
    # Every statement looks rows up by key, from arrays of unknown length. It is planned once, for
    # few rows, over indexes: a plan made while a table was empty must still be right when it is
    # full, and for a small table the planner would read all of it for every batch: by a scan, or
    # once by a hash or merge join. ``unnest.looked_up`` and ``Pool`` do the rest.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "random_page_cost": "1.1",
    "jit": "off",
}
CLOSE_S: Final = 2.0
"""How long closing may take. Sessions end without waiting for the server: it is a guard."""
LOCK_TIMEOUT_MS: Final = 200
"""How long a transaction that waits for locks waits for one row, before others have their turn."""
LANE_LOCK_TIMEOUT_MS: Final = 50
"""How long a lane's batch waits for a lock. It skips locked rows; what is left are new rows that
another transaction has inserted and not committed."""
STATEMENT_TIMEOUT_MS: Final = 3_000
IDLE_TIMEOUT_MS: Final = 6_000

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Database:
    """A service's database, with a pool for each purpose: none waits for another."""

    lanes: Pool
    """Transactions of lanes and carts. Every caller waits for them, so they wait for no lock."""
    waiting: Pool
    """Transactions that wait for row locks, and jobs."""
    reads: Pool
    """Single statements in autocommit mode."""
    probe: Pool
    """One session for the readiness probe, which many readers therefore cannot delay."""
    bulkheads: Bulkheads
    """How many transactions of each purpose have a connection of ``lanes`` or ``waiting``."""
    url: sa.URL
    """The address, for the operator's messages."""
    transaction_settings: TransactionSettings
    transactions: Transactions = field(compare=False)
    setting: str = "the database"
    """The variable or file that the address came from, for the operator."""
    checked: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Set when the readiness probe has passed once."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """The settings that the probe's session asks for at its start; none through a pooler."""
    warned: set[str] = field(default_factory=set, compare=False)
    """The warnings about the server that are logged already."""

    @asynccontextmanager
    async def begin(
        self, purpose: str = "other", *, of_call: bool = False
    ) -> AsyncIterator[Connection]:
        """A transaction outside any lane; ``purpose`` names it.

        It is one of a job, which skips what is locked; or ``of_call``: a call waits for it, and it
        waits for no lock. Committed at the end of the block (``Transactions.begin``). Raises
        Overloaded if the bulkhead for these stays full.
        """
        bulkhead = self.bulkheads.calls.place() if of_call else self.bulkheads.for_job()
        pool = self.lanes if of_call else self.waiting
        async with bulkhead, self.transactions.begin(pool) as connection:
            yield connection
            if failpoints.enabled:
                failpoints.hit(f"transaction.{purpose}.before")
        if failpoints.enabled:
            failpoints.hit(f"transaction.{purpose}.after")

    async def close(self) -> None:
        """Close every connection, without waiting for the server.

        COMMITs that have not returned go on in the server (``Transactions.abort``).
        """
        await self.transactions.abort()
        for pool in (self.lanes, self.waiting, self.reads, self.probe):
            pool.close()


def _session_settings(lock_timeout_ms: int) -> dict[str, str]:
    """What a session has to be set to. The values are those that ``pg_settings`` shows."""
    return {
        "lock_timeout": str(lock_timeout_ms),
        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
        # A replica that is frozen inside a transaction loses it, and its row locks.
        "idle_in_transaction_session_timeout": str(IDLE_TIMEOUT_MS),
        # For single reads. A transaction names its level when it begins.
        "default_transaction_isolation": "read committed",
        "TimeZone": "UTC",
        **_PLANS,
    }


def open_pools(
    url: str,
    *,
    application_name: str,
    pool_size: int,
    setting: str = "the database",
    url_file: Path | None = None,
    pooler: Pooler = "none",
) -> Database:
    """Pools with ``pool_size`` sessions in all. No session waits without a limit.

    One session is the probe's. Of the others, lanes, waiting transactions and reads get a third
    each, at least one: many readers cannot take a write's session, nor a locked row that
    of everyone else's batch. ``url_file``: see ``Connector``.
    """
    shared = pool_size - 1
    third = max(shared // 3, 1)
    connector = Connector(url_file)
    address = engine_url(url)
    settings = {
        "lanes": _session_settings(LANE_LOCK_TIMEOUT_MS),
        "waiting": _session_settings(LOCK_TIMEOUT_MS),
    }
    transaction_settings = TransactionSettings(pooler, settings)

    def pool(name: str, size: int) -> Pool:
        session_settings = settings.get(name) or _session_settings(LOCK_TIMEOUT_MS)
        arguments: dict[str, Any] = {
            # During a failover the name may still lead to the old primary, a standby by then:
            # its rows are old, and such a session would stay when the name has moved.
            "target_session_attrs": "read-write",
            # The client gives up a little after the server should have; not for COMMIT.
            "command_timeout": STATEMENT_TIMEOUT_MS / 1000 + 1,
            "server_settings": {
                "application_name": f"{application_name} {name}",
                # A pooler refuses or drops them.
                **({**SERVER_SETTINGS, **session_settings} if pooler == "none" else {}),
            },
        }

        async def open_() -> Session:
            session = await connector.connect(**connect_arguments(address), **arguments)
            if pooler != "none":
                # The plans are those of the sessions that the pooler lends it.
                session.planned_s = math.inf
            return session

        return Pool(open_, name=name, size=size)

    return Database(
        lanes=pool("lanes", third),
        waiting=pool("waiting", third),
        reads=pool("reads", max(shared - 2 * third, 1)),
        probe=pool("probe", 1),
        bulkheads=Bulkheads.of(lanes=third, waiting=third),
        url=address,
        transaction_settings=transaction_settings,
        transactions=Transactions(transaction_settings.of),
        setting=setting,
        asked=_session_settings(LOCK_TIMEOUT_MS) if pooler == "none" else {},
    )


@asynccontextmanager
async def open_database(settings: ServiceSettings) -> AsyncIterator[Database]:
    """The service's database, from its settings; closed at the end of the block."""
    database = open_pools(
        settings.database_url.get_secret_value(),
        application_name=f"tally {settings.service} {settings.replica}"[:48],
        pool_size=settings.pool_size,
        setting=source_of(settings.service, "database_url"),
        url_file=file_of(settings.service, "database_url"),
        pooler=settings.pooler,
    )
    try:
        yield database
    finally:
        await database.close()
