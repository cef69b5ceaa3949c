"""The revisions that bring seats, on a database that replicas of the earlier release use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.db.migrations import migrate
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import name_of


@pytest.mark.parametrize("number", [6, 7])
async def test_a_revision_that_was_interrupted_is_applied_again(
    postgres_server: PostgresServer,
    older_database: ServiceUrls,
    until: Callable[[int], Path],
    number: int,
) -> None:
    """Its first transaction is committed before its constraint is validated."""
    await migrate(older_database.owner, until(number))
    postgres_server.run_sql(
        f"UPDATE alembic_version SET version_num = 'order_{number - 1:04}'",
        database=name_of(older_database),
    )
    await migrate(older_database.owner, until(8))
    invalid = "SELECT conname FROM pg_constraint WHERE NOT convalidated"
    assert not postgres_server.run_sql(invalid, database=name_of(older_database))
