"""Bring a service's database to its newest schema, once, whoever asks and however often."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from common.addresses import engine_url
from common.database import LOCK_NOT_AVAILABLE, sqlstate

_LOCK: Final = 7_418_201
"""Advisory lock of migrations: two release jobs at once run one after the other."""
LOCK_TIMEOUT_S: Final = 3
"""How long a statement waits for a table. Meanwhile everybody's queries of it queue behind it:
longer than a replica waits for a row, but within the 5 s that calls may fail for at most."""


class SchemaInUse(Exception):  # noqa: N818 - somebody else holds it, which is no fault
    """A table is held by other sessions. Nothing was changed; later it may be free."""


async def migrate(owner_url: str, versions: Path) -> None:
    """Upgrade the database at ``owner_url`` with the revisions in the folder ``versions``.

    Needs the owner role: the role the service runs with has no right to change the schema.
    All revisions or none: raises SchemaInUse if a table is not let go within LOCK_TIMEOUT_S.
    """
    engine = create_async_engine(engine_url(owner_url))
    try:
        async with engine.connect() as connection:
            # However long: it holds up nobody who serves.
            await connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            await connection.commit()
            await _migrate_impatiently(connection, versions)
    finally:
        await engine.dispose()


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
        f"other transactions held a table for {LOCK_TIMEOUT_S} s, and nothing was changed; end the "
        f"old ones (xact_start in pg_stat_activity) and migrate again; what waited: {wanted}"
    )


def migrate_connection(connection: sa.Connection, versions: Path) -> None:
    """The same on a connection that is open already."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(versions))
    config.attributes["connection"] = connection
    logging.getLogger("alembic").setLevel(logging.WARNING)
    command.upgrade(config, "head")


def execute(*scripts: str) -> None:
    """Run SQL scripts inside a migration, statement by statement: a prepared one may hold no more.

    A statement ends with a semicolon at the end of a line.
    """
    for script in scripts:
        for statement in script.split(";\n"):
            if statement.strip():
                op.execute(statement)
