"""One snapshot of each book, taken as close together as can be."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from common.db.errors import sqlstate
from common.urls import engine_url
from deploy.audit.sources import SERVICES, CannotLook, Sources

CONNECT_TIMEOUT_S: Final = 10.0
STATEMENT_TIMEOUT_MS: Final = 600_000
GATEWAY_WAIT_S: Final = 5.0

# An effect comes after the journal's word that it was begun and before its word that it is done.
# Seen in this order, whatever the orders and payments of the earlier snapshots say is done is there
# in the later ones.
ORDER_OF_SNAPSHOTS: Final = ("order", "coupon", "balance", "payment")
assert set(ORDER_OF_SNAPSHOTS) == set(SERVICES)

_SETTINGS: Final = {
    "application_name": "tally audit",
    "default_transaction_read_only": "on",
    "lock_timeout": "5000",
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    # The others are read meanwhile, for as long as that takes.
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "64MB",
    "jit": "off",
    "timezone": "UTC",
}
_NO_SCHEMA: Final = {"3F000", "42P01", "42703"}
_NO_RIGHTS: Final = {"28000", "28P01", "42501"}


@dataclass(frozen=True, slots=True)
class Books:
    """A snapshot of every database, and of the gateway's record."""

    databases: dict[str, AsyncConnection]
    gateway: sqlite3.Connection

    def __getitem__(self, service: str) -> AsyncConnection:
        return self.databases[service]


@asynccontextmanager
async def snapshots(sources: Sources) -> AsyncIterator[Books]:
    """All books at this moment. Raises CannotLook, also for what goes wrong inside the block."""
    async with AsyncExitStack() as exits:
        databases = {
            service: await exits.enter_async_context(_connection(service, url))
            for service, url in sources.databases.items()
        }
        gateway = exits.enter_context(_gateway(sources.gateway_record))
        for service in ORDER_OF_SNAPSHOTS:
            with told(service):
                # The first statement takes the snapshot; the connection was made before.
                await databases[service].execute(sa.text("SELECT 1 FROM alembic_version LIMIT 1"))
        with told_of_gateway(sources.gateway_record):
            gateway.execute("BEGIN")
            gateway.execute("SELECT 1 FROM payments LIMIT 1").fetchall()
            yield Books(databases, gateway)


@asynccontextmanager
async def _connection(service: str, url: str) -> AsyncIterator[AsyncConnection]:
    options: dict[str, Any] = {"timeout": CONNECT_TIMEOUT_S, "server_settings": _SETTINGS}
    engine = create_async_engine(
        engine_url(url),
        poolclass=NullPool,
        isolation_level="REPEATABLE READ",
        connect_args=options,
    )
    async with AsyncExitStack() as exits:
        exits.push_async_callback(engine.dispose)
        with told(service):
            connection = await exits.enter_async_context(engine.connect())
            await connection.execution_options(postgresql_readonly=True)
        yield connection


@contextmanager
def _gateway(record: Path) -> Iterator[sqlite3.Connection]:
    with told_of_gateway(record):
        connection = sqlite3.connect(
            f"{record.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            timeout=GATEWAY_WAIT_S,
        )
    try:
        connection.row_factory = sqlite3.Row
        yield connection
    finally:
        connection.close()


@contextmanager
def told(service: str) -> Iterator[None]:
    """Turn what the service's database, or the way to it, does wrong into CannotLook."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DBAPIError):
            state = sqlstate(error)
        elif isinstance(error, OSError | TimeoutError):
            state = ""
        elif type(error).__module__.startswith("asyncpg"):
            # Raised while connecting, where SQLAlchemy does not wrap it.
            state = str(getattr(error, "sqlstate", None) or "")
        else:
            raise
        if state in _NO_SCHEMA:
            why = "its schema is missing or not of this release: run its migrations"
        elif state in _NO_RIGHTS:
            why = f"the audit role may not read it ({_first_line(error)})"
        elif state == "3D000":
            why = "there is no such database"
        else:
            why = f"it does not answer ({_first_line(error)})"
        raise CannotLook(f"the {service} database: {why}") from error


@contextmanager
def told_of_gateway(record: Path) -> Iterator[None]:
    """Turn what is wrong with the gateway's record into CannotLook."""
    try:
        yield
    except sqlite3.Error as error:
        why = str(error) if record.exists() else "there is no such file"
        raise CannotLook(f"the gateway's record {record}: {why}") from error


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    text = str(cause).strip().partition("\n")[0]
    return text.rpartition("Error'>: ")[2] or type(cause).__name__
