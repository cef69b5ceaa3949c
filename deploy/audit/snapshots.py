"""One read-only snapshot of each book, all taken as close together as possible."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from common.db.errors import sqlstate
from common.urls import engine_url, tls_arguments
from deploy.audit.errors import CannotAudit
from deploy.audit.gateway_api import GatewayAddress
from deploy.audit.sources import Sources

CONNECT_TIMEOUT_S: Final = 10.0
STATEMENT_TIMEOUT_MS: Final = 600_000
GATEWAY_WAIT_S: Final = 5.0

# A service's effect is committed after the journal's "begun" and before its "done". In this order,
# the later snapshots hold every effect that the orders and payments of the earlier ones call done.
ORDER_OF_SNAPSHOTS: Final = ("order", "coupon", "balance", "payment")

_SETTINGS: Final = {
    "application_name": "tally audit",
    "default_transaction_read_only": "on",
    "lock_timeout": "5000",
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    # A snapshot is idle while the other databases are read.
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "64MB",
    "jit": "off",
    "timezone": "UTC",
}
# now() is the time at which the transaction began, before its snapshot.
_TAKE: Final = sa.text("SELECT now() FROM alembic_version LIMIT 1")
_NO_SCHEMA: Final = "its schema is missing or not of this release: run its migrations"
_NO_RIGHTS: Final = "the audit role may not read it"
_CAUSES: Final = {
    **dict.fromkeys(("3F000", "42P01", "42703"), _NO_SCHEMA),
    **dict.fromkeys(("28000", "28P01", "42501"), _NO_RIGHTS),
    "3D000": "there is no such database",
}
"""By SQLSTATE."""


@dataclass(frozen=True, slots=True)
class Books:
    """A snapshot of every database, and the gateway's side."""

    databases: dict[str, AsyncConnection]
    gateway: sqlite3.Connection | GatewayAddress | None
    """A snapshot of the simulator's record; where the API is, which has none; or left out."""
    times: dict[str, datetime] = field(default_factory=dict)
    """By service, when its snapshot was taken at the latest, by the clock of its database."""

    def __getitem__(self, service: str) -> AsyncConnection:
        return self.databases[service]


@asynccontextmanager
async def take_snapshots(sources: Sources) -> AsyncIterator[Books]:
    """All books at this moment. Raises CannotAudit, also for errors within the block."""
    async with AsyncExitStack() as exits:
        databases = {
            service: await exits.enter_async_context(connect(service, url))
            for service, url in sources.databases.items()
        }
        record: sqlite3.Connection | None = None
        if sources.gateway_record is not None:
            exits.enter_context(gateway_errors(sources.gateway_record))
            record = exits.enter_context(closing(_open_record(sources.gateway_record)))
        times = {}
        for service in ORDER_OF_SNAPSHOTS:
            with database_errors(service):
                # The first statement takes the snapshot; the connection already exists.
                taken = await databases[service].execute(_TAKE)
                times[service] = taken.scalar_one()
        if record is not None:
            record.execute("BEGIN")
            record.execute("SELECT 1 FROM payments LIMIT 1").fetchall()
        yield Books(databases, record or sources.gateway_api, times)


@asynccontextmanager
async def connect(service: str, url: str) -> AsyncIterator[AsyncConnection]:
    """A read-only session, whose first statement takes its snapshot. Raises CannotAudit."""
    address = engine_url(url)
    async with AsyncExitStack() as exits:
        with database_errors(service):
            engine = create_async_engine(
                address.set(query={}),
                poolclass=NullPool,
                isolation_level="REPEATABLE READ",
                connect_args={
                    **tls_arguments(address),
                    "timeout": CONNECT_TIMEOUT_S,
                    # A little after the server should have ended the statement.
                    "command_timeout": STATEMENT_TIMEOUT_MS / 1000 + CONNECT_TIMEOUT_S,
                    "server_settings": _SETTINGS,
                },
            )
            exits.push_async_callback(engine.dispose)
            connection = await exits.enter_async_context(engine.connect())
            await connection.execution_options(postgresql_readonly=True)
        yield connection


def _open_record(record: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{record.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=GATEWAY_WAIT_S,
    )
    connection.row_factory = sqlite3.Row
    return connection


@contextmanager
def database_errors(service: str) -> Iterator[None]:
    """Raise CannotAudit for errors of the service's database or of the connection to it."""
    try:
        yield
    # SQLAlchemy wraps the driver's errors, but not those of the network.
    except (DBAPIError, OSError) as error:
        cause = _CAUSES.get(sqlstate(error), "it does not answer")
        raise CannotAudit(f"the {service} database: {cause} ({_first_line(error)})") from error


@contextmanager
def gateway_errors(record: Path) -> Iterator[None]:
    """Raise CannotAudit for errors of the gateway's record."""
    try:
        yield
    except sqlite3.Error as error:
        why = str(error) if record.exists() else "there is no such file"
        raise CannotAudit(f"the gateway's record {record}: {why}") from error


def _first_line(error: BaseException) -> str:
    cause: Any = getattr(error, "orig", None) or error
    text = str(cause).strip().partition("\n")[0]
    return text.rpartition("Error'>: ")[2] or type(cause).__name__
