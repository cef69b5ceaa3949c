"""Creates indexes of tables that are in use."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from common.db.errors import LOCK_NOT_AVAILABLE, sqlstate
from common.db.migrations import run

WAIT_S: Final = 600
"""How long an index waits for the transactions that began before it. No call waits meanwhile."""

_UNFINISHED: Final = sa.text(
    "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
)
_LIMIT: Final = sa.text("SELECT set_config('lock_timeout', :limit, false)")


def create_index(name: str, on: str, *, unique: bool = False) -> None:
    """Create the index ``name``, unless it exists, without blocking writes of its table.

    ``on`` is the rest of the statement: ``payments (check_time) WHERE check_time IS NOT NULL``.

    It is built CONCURRENTLY, outside a transaction: what the revision did before is committed
    first, so the revision has to be one that can be run again. An index that an interrupted attempt
    left unfinished is dropped first. Raises SchemaInUse if older transactions do not end within
    WAIT_S.
    """
    kind = "UNIQUE INDEX" if unique else "INDEX"
    try:
        _create(name, f"CREATE {kind} CONCURRENTLY IF NOT EXISTS {name} ON {on}")
    except PendingRollbackError as error:
        # The connection is lost, and Alembic fails to commit on it: the first error has the cause.
        raise error.__context__ or error from None


def _create(name: str, statement: str) -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        connection.execute(_LIMIT, {"limit": f"{WAIT_S}s"})
        try:
            if connection.scalar(_UNFINISHED, {"name": name}):
                connection.execute(sa.text(f"DROP INDEX CONCURRENTLY {name}"))
            connection.execute(sa.text(statement))
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            raise run.SchemaInUse(
                f"transactions older than index {name} did not end within {WAIT_S} s, and it is "
                "not finished; end them (xact_start in pg_stat_activity) and migrate again"
            ) from error
        # Not after an error: it ends the migration and its session, which may be lost already.
        connection.execute(_LIMIT, {"limit": f"{run.LOCK_TIMEOUT_S}s"})
