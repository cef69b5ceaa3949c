"""Upgrades a service's database to its newest schema. Safe to run at the same time and again."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
from alembic import command, op
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common.db.connections import CONNECT_TIMEOUT_S, Session
from common.db.errors import LOCK_NOT_AVAILABLE, describe_failure, sqlstate
from common.db.revisions import require_own
from common.db.server_settings import (
    check_server,
    collation_warning,
    require_direct,
    require_writable,
)
from common.db.statements import Connection
from common.urls import engine_url, tls_arguments

_LOCK: Final = 7_418_201
"""Advisory lock of migrations: two release jobs at the same time run one after the other."""
LOCK_TIMEOUT_S: Final = 3
"""How long a statement waits for a table. Meanwhile all queries of that table queue behind it: the
limit is longer than a replica waits for a row, but less than the 5 s for which calls may fail. A
revision keeps its locks until its end. With two tables, it could delay calls for longer: each
revision locks one."""
POLL_S: Final = 1.0
_NOT_YET: Final = {
    "53300",  # too many connections
    "57P01",  # shutting down
    "57P02",
    "57P03",  # starting
}

_log = structlog.stdlib.get_logger()


class SchemaInUse(Exception):  # noqa: N818 - a state, not a fault
    """Other sessions have locked a table; later it may be free.

    The revision that needed it changed nothing; those before it are applied.
    """


async def migrate(owner_url: str, versions: Path, *, wait_s: float = 0.0) -> None:
    """Upgrade the database at ``owner_url`` with the revisions in the folder ``versions``.

    It needs the owner role: the runtime role may not change the schema. Each revision is applied as
    a whole or not at all. If one fails, those before it stay, and the next call continues there. A
    newer schema, as after a rollback, is left as it is.

    A server that is not there yet is waited for, for at most ``wait_s`` seconds. Raises SchemaInUse
    if a table is not released within LOCK_TIMEOUT_S, ForeignSchema if the schema is another
    service's, UnsuitableServer if the server is not set as the books need it or is behind a pooler,
    and the driver's error if the server rejects the connection or does not come.
    """
    address = engine_url(owner_url)
    engine = create_async_engine(
        address.set(query={}),
        isolation_level="READ COMMITTED",
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            **tls_arguments(address),
            "connection_class": Session,
        },
    )
    try:
        await _wait_for_server(engine, wait_s)
        async with engine.connect() as connection:
            await _check(connection)
            await _wait_for_other_jobs(connection)
            await _migrate_with_lock_timeout(connection, versions)
    finally:
        await engine.dispose()


async def _wait_for_server(engine: AsyncEngine, wait_s: float) -> None:
    """Return when a session is open; it stays in the pool."""
    give_up_at = time.monotonic() + wait_s
    logged = ""
    while True:
        try:
            return await _connect(engine)
        except Exception as error:
            if not _is_temporary(error) or time.monotonic() + POLL_S > give_up_at:
                raise
            reason = describe_failure(error, engine.url)
            if reason != logged:
                _log.info("waiting for the database", reason=reason)
            logged = reason
        await asyncio.sleep(POLL_S)


async def _connect(engine: AsyncEngine) -> None:
    try:
        async with engine.connect():
            return
    except TimeoutError:
        # It has no text, and ``describe_failure`` would take it for the readiness probe's.
        raise OSError(f"nothing within {CONNECT_TIMEOUT_S:g} s") from None


async def _check(connection: AsyncConnection) -> None:
    """Raise UnsuitableServer before anything is changed; log what should be changed early."""
    session = (await connection.get_raw_connection()).driver_connection
    assert isinstance(session, Session)
    checked = Connection(session)
    await require_direct(checked)
    await require_writable(checked)
    for warning in await check_server(checked):
        _log.warning("database not durable", reason=warning)
    if warning := await collation_warning(checked):
        _log.warning("collation may change", reason=warning)


async def _wait_for_other_jobs(connection: AsyncConnection) -> None:
    """Take the lock of migrations for the session. No time limit: it delays no call.

    Not by one statement that waits: an index that is created CONCURRENTLY waits for the transaction
    of every statement, and the two would wait for each other.
    """
    try_lock = sa.text("SELECT pg_try_advisory_lock(:key)")
    while not await connection.scalar(try_lock, {"key": _LOCK}):
        await connection.rollback()
        await asyncio.sleep(POLL_S)
    await connection.commit()


def _is_temporary(error: BaseException) -> bool:
    """Whether the server is only away. A rejection or a bad certificate stays as it is."""
    state = str(getattr(error, "sqlstate", None) or sqlstate(error))
    if state:
        return state[:2] == "08" or state in _NOT_YET
    # asyncpg raises a plain ConnectionError for a server without TLS. A missing file is the
    # certificate's.
    final = isinstance(error, ssl.SSLError | FileNotFoundError | PermissionError)
    return isinstance(error, OSError) and not final and type(error) is not ConnectionError


async def _migrate_with_lock_timeout(connection: AsyncConnection, versions: Path) -> None:
    await connection.execute(
        sa.text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": f"{LOCK_TIMEOUT_S}s"}
    )
    await connection.commit()
    try:
        await connection.run_sync(_migrate_connection, versions)
        await connection.commit()
    except DBAPIError as error:
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            raise
        statement = " ".join((error.statement or "").split())[:80]
        raise SchemaInUse(
            f"other transactions held a table for {LOCK_TIMEOUT_S} s, and the revision that waited "
            "for it changed nothing; end the old ones (xact_start in pg_stat_activity) and migrate "
            f"again; what waited: {statement}"
        ) from error


def _migrate_connection(connection: sa.Connection, versions: Path) -> None:
    """Upgrade through an open connection that is in no transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(versions))
    config.attributes["connection"] = connection
    logging.getLogger("alembic").setLevel(logging.WARNING)
    newest = ScriptDirectory.from_config(config).get_current_head() or ""
    found = MigrationContext.configure(connection).get_current_revision() or ""
    # The query began a transaction, which all revisions would share.
    connection.rollback()
    require_own(found, newest, connection.engine.url.database)
    if found > newest:
        # Alembic does not know that revision. The job of a rollback must succeed: releases expand
        # first, so that the older release runs on the newer schema.
        _log.info("the schema is newer than this release", found=found, newest=newest)
        return
    command.upgrade(config, "head")


def execute(*scripts: str) -> None:
    """Run SQL scripts in a migration, one statement at a time, as asyncpg requires.

    A statement ends with a semicolon at the end of a line.
    """
    for script in scripts:
        for statement in script.split(";\n"):
            if statement.strip():
                op.execute(statement)
