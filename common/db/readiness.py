"""Whether the service can use its database: it answers, takes writes, and has a new schema."""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

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
_PROBE: Final = sa.text(
    "SELECT (SELECT version_num FROM alembic_version),"
    " current_setting('transaction_read_only') = 'on'"
)

Probed: TypeAlias = tuple[str, list[str]]
"""The revision of the schema, and warnings about the server."""

_abandoned: set[asyncio.Task[Probed]] = set()
_log = structlog.stdlib.get_logger()


class NotReady(Exception):  # noqa: N818 - a state, not a fault
    """The service cannot serve now; the message says why and what to do."""


async def check_ready(database: Database, *, schema: str) -> None:
    """Raise NotReady unless the database answers, takes writes, and has ``schema`` or a newer one.

    Revisions are the service's name and a number of four digits. A newer schema is usable: releases
    expand first, and contract only when no replica of the older release is left.

    The first time that it succeeds, it logs a warning for each server setting with which a crash
    could lose committed transactions.
    """
    url = database.probe.url
    probe = asyncio.create_task(_read_state(database))
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            found, warnings = await result_of(probe)
        require_own(found, schema, url.database)
    except ForeignSchema as error:
        raise NotReady(f"{database.setting}: {error}") from error
    except Exception as error:
        problem = describe_failure(error, url)
        if sqlstate(error) == UNDEFINED_TABLE:
            problem = f"database {url.database} has no schema yet: run migrate"
        raise NotReady(f"{database.setting}: {problem}") from error
    finally:
        _abandon(probe)
    if found < schema:
        age = f"the schema of database {url.database} is at {found or 'nothing'}"
        raise NotReady(f"{database.setting}: {age}, this release needs {schema}: run migrate")
    for warning in warnings:
        _log.warning("database not durable", setting=database.setting, reason=warning)
    database.checked.set()


async def _read_state(database: Database) -> Probed:
    """Raises ReadOnlyDatabase for a session that takes no writes, or CommitsPending."""
    async with database.probe.connect() as connection:
        found, read_only = (await connection.execute(_PROBE)).one()
        if read_only:
            raise ReadOnlyDatabase
        await database.transactions.check(connection)
        warnings = [] if database.checked.is_set() else await durability_warnings(connection)
    return found or "", warnings


def _abandon(probe: asyncio.Task[Probed]) -> None:
    """Cancel the probe, if it still runs, without waiting for its end.

    The driver takes two seconds to close a connection to a silent server, and the result is already
    known.
    """

    def on_done(task: asyncio.Task[Probed]) -> None:
        _abandoned.discard(task)
        if not task.cancelled():
            # Retrieved, so that asyncio does not log that nobody did.
            task.exception()

    if probe.cancel():
        _abandoned.add(probe)
        probe.add_done_callback(on_done)


async def durability_warnings(connection: AsyncConnection) -> list[str]:
    """The server's settings with which a crash could lose committed transactions."""
    rows = await connection.execute(
        sa.text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names) ORDER BY name"),
        {"names": list(_DURABILITY)},
    )
    return [
        f"{name} is off: a crash may lose committed answers" for name, on in rows if on == "off"
    ]
