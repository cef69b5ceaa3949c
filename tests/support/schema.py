"""That a service's tables.py says what its migrations make."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from common.db.engines import open_engines


async def differences(url: str, metadata: sa.MetaData) -> list[Any]:
    """What Alembic would change to make the database at ``url`` what ``metadata`` says."""

    def compare(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, metadata)
        return [change for change in found if not _is_alembics_own(change)]

    database = open_engines(url, application_name="schema", pool_size=3)
    try:
        async with database.waiting.connect() as connection:
            return await connection.run_sync(compare)
    finally:
        await database.close()


def _is_alembics_own(change: Any) -> bool:
    return bool(change[0] == "remove_table" and change[1].name == "alembic_version")


async def missing_constraints(url: str, names: set[str]) -> set[str]:
    """Which of these constraint and unique index names the database does not have."""
    database = open_engines(url, application_name="schema", pool_size=3)
    found = sa.text(
        "SELECT conname FROM pg_constraint UNION "
        "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE indisunique"
    )
    try:
        async with database.reads.connect() as connection:
            return names - set(await connection.scalars(found))
    finally:
        await database.close()
