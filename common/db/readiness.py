"""Whether the service's database is fit: it answers, takes writes, and its schema is new enough."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.engines import Database
from common.db.errors import (
    READY_TIMEOUT_S,
    UNDEFINED_TABLE,
    ReadOnlyDatabase,
    describe_failure,
    sqlstate,
)
from common.db.revisions import ForeignSchema, require_own
from common.tasks import result_of

_DURABILITY: Final = ("fsync", "synchronous_commit", "full_page_writes")
_LOOK: Final = sa.text(
    "SELECT (SELECT version_num FROM alembic_version),"
    " current_setting('transaction_read_only') = 'on'"
)

_leaving: set[asyncio.Task[Any]] = set()
_log = structlog.stdlib.get_logger()


class NotReady(Exception):  # noqa: N818 - a state, not a fault
    """The service cannot serve now; the message says why and what to do."""


async def check_ready(database: Database, *, schema: str) -> None:
    """Raise NotReady unless the database answers, takes writes, and is at ``schema`` at least.

    Revisions are the service's name and a number of four digits. A newer schema is fine: releases
    expand first and contract only when no replica of the older release is left.

    The first time that all is well, it logs a warning for each setting of the server under which
    a crash could lose what was committed.
    """
    url = database.probe.url
    looking = asyncio.create_task(_look(database))
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            found, warnings = await result_of(looking)
    except Exception as error:
        if sqlstate(error) == UNDEFINED_TABLE:
            told = f"database {url.database} has no schema yet: run migrate"
        else:
            told = describe_failure(error, url)
        raise NotReady(f"{database.setting}: {told}") from error
    finally:
        _let_go(looking)
    try:
        require_own(found, schema, url.database)
    except ForeignSchema as error:
        raise NotReady(f"{database.setting}: {error}") from error
    if found < schema:
        told = f"the schema of database {url.database} is at {found or 'nothing'}"
        raise NotReady(f"{database.setting}: {told}, this release needs {schema}: run migrate")
    for warning in warnings:
        _log.warning("database not durable", setting=database.setting, reason=warning)
    database.checked.set()


async def _look(database: Database) -> tuple[str, list[str]]:
    """The schema's revision, and what else is worth a warning."""
    async with database.probe.connect() as connection:
        found, read_only = (await connection.execute(_LOOK)).one()
        if read_only:
            raise ReadOnlyDatabase
        warnings = [] if database.checked.is_set() else await durability_warnings(connection)
    return found or "", warnings


def _let_go(looking: asyncio.Task[Any]) -> None:
    """Cancel it unless it has ended, and do not wait for that.

    The driver spends two seconds on closing a connection over which nothing comes, and what is to
    be told is known before.
    """
    if looking.cancel():
        _leaving.add(looking)
        looking.add_done_callback(_left)


def _left(looking: asyncio.Task[Any]) -> None:
    _leaving.discard(looking)
    if not looking.cancelled():
        # Asked for, so that asyncio does not tell of it: nobody waits for it any more.
        looking.exception()


async def durability_warnings(connection: AsyncConnection) -> list[str]:
    """Settings of the server under which a committed answer could be lost in a crash."""
    rows = await connection.execute(
        sa.text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names) ORDER BY name"),
        {"names": list(_DURABILITY)},
    )
    return [
        f"{name} is off: a crash may lose committed answers" for name, on in rows if on == "off"
    ]
