"""The balance database is what tables.py says, and its guards are there under their names."""

from __future__ import annotations

from balance_service import tables
from balance_service.locking import STRATEGIES
from deploy.local.postgres_roles import ServiceUrls
from tests.support.schema import differences, missing_constraints


async def test_the_migrations_make_these_tables(balance_database: ServiceUrls) -> None:
    assert await differences(balance_database.owner, tables.metadata) == []


async def test_every_guard_of_the_strategy_table_exists(balance_database: ServiceUrls) -> None:
    guards = {guard for strategy in STRATEGIES.values() for guard in strategy.guards}
    assert guards
    assert await missing_constraints(balance_database.owner, guards) == set()
