"""Bring a service's database to its newest schema, once, whoever asks and however often."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine

from common.addresses import engine_url

_LOCK: Final = 7_418_201
"""Advisory lock of migrations: two release jobs at once run one after the other."""


async def migrate(owner_url: str, versions: Path) -> None:
    """Upgrade the database at ``owner_url`` with the revisions in the folder ``versions``.

    Needs the owner role: the role the service runs with has no right to change the schema.
    """
    engine = create_async_engine(engine_url(owner_url))
    try:
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            await connection.commit()
            await connection.run_sync(migrate_connection, versions)
            await connection.commit()
    finally:
        await engine.dispose()


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
