"""Bring a service's database to its newest schema, once, whoever asks and however often."""

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

from common.db.engines import CONNECT_TIMEOUT_S
from common.db.errors import LOCK_NOT_AVAILABLE, describe_failure, sqlstate
from common.db.revisions import require_own
from common.urls import engine_url

_LOCK: Final = 7_418_201
"""Advisory lock of migrations: two release jobs at once run one after the other."""
LOCK_TIMEOUT_S: Final = 3
"""How long a statement waits for a table. Meanwhile everybody's queries of it queue behind it:
longer than a replica waits for a row, but within the 5 s that calls may fail for at most. What a
revision has locked it keeps to its end, so that one of two tables could hold up calls for longer:
each locks one."""
POLL_S: Final = 1.0
_NOT_YET: Final = {
    "53300",  # too many connections
    "57P01",  # going down
    "57P02",
    "57P03",  # starting
}

_log = structlog.stdlib.get_logger()


class SchemaInUse(Exception):  # noqa: N818 - somebody else holds it, which is no fault
    """A table is held by other sessions. Later it may be free.

    The revision that wanted it has changed nothing; those before it stay.
    """


async def migrate(owner_url: str, versions: Path, *, wait_s: float = 0.0) -> None:
    """Upgrade the database at ``owner_url`` with the revisions in the folder ``versions``.

    Needs the owner role: the role the service runs with has no right to change the schema.
    Each revision is done as a whole or not at all, and those before one that fails stay: the next
    call goes on from there. Does nothing to a schema that is newer, as after a rollback.
    Raises SchemaInUse if a table is not let go within LOCK_TIMEOUT_S, and ForeignSchema if what is
    there is not the same service's.
    A server that is not there yet is waited for, ``wait_s`` at most; then, and at once if it
    answers and refuses, raises what the driver does.
    """
    engine = create_async_engine(engine_url(owner_url), connect_args={"timeout": CONNECT_TIMEOUT_S})
    try:
        await _reach(engine, wait_s)
        async with engine.connect() as connection:
            # However long: it holds up nobody who serves.
            await connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            await connection.commit()
            await _migrate_impatiently(connection, versions)
    finally:
        await engine.dispose()


async def _reach(engine: AsyncEngine, wait_s: float) -> None:
    """Return when a session has been opened; it stays in the pool."""
    gives_up = time.monotonic() + wait_s
    told = ""
    while True:
        try:
            return await _connect(engine)
        except Exception as error:
            if not _may_come(error) or time.monotonic() + POLL_S > gives_up:
                raise
            reason = describe_failure(error, engine.url)
            if reason != told:
                _log.info("waiting for the database", reason=reason)
            told = reason
        await asyncio.sleep(POLL_S)


async def _connect(engine: AsyncEngine) -> None:
    try:
        async with engine.connect():
            return
    except TimeoutError:
        # It says nothing by itself; common.db.engines would take it for a probe's.
        raise OSError(f"nothing within {CONNECT_TIMEOUT_S:g} s") from None


def _may_come(error: BaseException) -> bool:
    """Whether the server is merely away. What it refuses, and a bad certificate, stay so."""
    state = str(getattr(error, "sqlstate", None) or sqlstate(error))
    if state:
        return state[:2] == "08" or state in _NOT_YET
    # asyncpg's own, of no kind, is for a server that does not speak TLS. A file that is not there
    # is the certificate's.
    final = isinstance(error, ssl.SSLError | FileNotFoundError | PermissionError)
    return isinstance(error, OSError) and not final and type(error) is not ConnectionError


async def _migrate_impatiently(connection: AsyncConnection, versions: Path) -> None:
    await connection.execute(
        sa.text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": f"{LOCK_TIMEOUT_S}s"}
    )
    await connection.commit()
    try:
        await connection.run_sync(migrate_connection, versions)
        await connection.commit()
    except DBAPIError as error:
        if sqlstate(error) == LOCK_NOT_AVAILABLE:
            raise SchemaInUse(_told(error.statement or "")) from error
        raise


def _told(statement: str) -> str:
    wanted = " ".join(statement.split())[:80]
    return (
        f"other transactions held a table for {LOCK_TIMEOUT_S} s, and the revision that waited for "
        "it changed nothing; end the old ones (xact_start in pg_stat_activity) and migrate again; "
        f"what waited: {wanted}"
    )


def migrate_connection(connection: sa.Connection, versions: Path) -> None:
    """The same on a connection that is open already, and in no transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(versions))
    config.attributes["connection"] = connection
    logging.getLogger("alembic").setLevel(logging.WARNING)
    newest = ScriptDirectory.from_config(config).get_current_head() or ""
    found = MigrationContext.configure(connection).get_current_revision() or ""
    # Looking has begun a transaction, which would be that of all revisions.
    connection.rollback()
    require_own(found, newest, connection.engine.url.database)
    if found > newest:
        # Alembic does not know that revision. A rollback's Job is to end well: releases expand
        # first, so that the older one runs on it.
        _log.info("the schema is newer than this release", found=found, newest=newest)
        return
    command.upgrade(config, "head")


def execute(*scripts: str) -> None:
    """Run SQL scripts inside a migration, statement by statement: a prepared one may hold no more.

    A statement ends with a semicolon at the end of a line.
    """
    for script in scripts:
        for statement in script.split(";\n"):
            if statement.strip():
                op.execute(statement)
