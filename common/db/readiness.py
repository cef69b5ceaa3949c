"""Whether the service can use its database: it answers, takes writes, and has a new schema."""

from __future__ import annotations

import asyncio
from typing import Final

import sqlalchemy as sa
import structlog

from common.db.database import Database
from common.db.errors import (
    READY_TIMEOUT_S,
    UNDEFINED_TABLE,
    ReadOnlyDatabase,
    describe_failure,
    sqlstate,
)
from common.db.revisions import ForeignSchema, require_own
from common.db.server_settings import (
    UnsuitableServer,
    check_server,
    lost_settings,
    require_prepared_statements,
)
from common.db.statements import Connection
from common.tasks import result_of

_PROBE: Final = sa.text(
    "SELECT (SELECT version_num FROM alembic_version),"
    " current_setting('transaction_read_only') = 'on'"
)

_abandoned: set[asyncio.Task[str]] = set()
_log = structlog.stdlib.get_logger()


class NotReady(Exception):  # noqa: N818 - a state, not a fault
    """The service cannot serve now; the message says why and what to do."""


async def check_ready(database: Database, *, schema: str) -> None:
    """Raise NotReady unless the database answers, takes writes, and has ``schema`` or a newer one.

    Revisions are the service's name and a number of four digits. A newer schema is usable: releases
    expand first, and contract only when no replica of the older release is left.

    A server that is not set as the books need it is not ready either. It is checked with each new
    session, since a failover may lead to another server. A setting with which a crash could lose
    committed transactions is logged once, and so is a pooler that drops a session's settings: from
    then on each transaction has its own.
    """
    url = database.url
    probe = asyncio.create_task(_read_state(database))
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            found = await result_of(probe)
        require_own(found, schema, url.database)
    except (ForeignSchema, UnsuitableServer) as error:
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
    database.checked.set()


async def _read_state(database: Database) -> str:
    """The schema's revision.

    Raises ReadOnlyDatabase for a session that takes no writes, CommitsPending and UnsuitableServer.
    """
    async with database.probe.connect() as connection:
        found, read_only = (await connection.execute(_PROBE)).one()
        if read_only:
            raise ReadOnlyDatabase
        await database.transactions.check(connection)
        if not connection.session.checked:
            await _check_session(database, connection)
            connection.session.checked = True
    return found or ""


async def _check_session(database: Database, connection: Connection) -> None:
    for warning in await check_server(connection):
        _warn(database, "database not durable", warning)
    lost = await lost_settings(connection, database.asked)
    if lost or not database.asked:
        await require_prepared_statements(connection)
    if lost:
        database.transaction_settings.enabled = True
        reason = f"a pooler dropped {', '.join(lost)}: set TALLY_POOLER=transaction"
        _warn(database, "session settings lost", reason)


def _warn(database: Database, event: str, reason: str) -> None:
    if reason not in database.warned:
        database.warned.add(reason)
        _log.warning(event, setting=database.setting, reason=reason)


def _abandon(probe: asyncio.Task[str]) -> None:
    """Cancel the probe, if it still runs, without waiting for its end.

    Its session is settled first, which waits for a silent server (``common.db.pool``), and the
    result is already known.
    """

    def on_done(task: asyncio.Task[str]) -> None:
        _abandoned.discard(task)
        if not task.cancelled():
            # Retrieved, so that asyncio does not log that nobody did.
            task.exception()

    if probe.cancel():
        _abandoned.add(probe)
        probe.add_done_callback(on_done)
