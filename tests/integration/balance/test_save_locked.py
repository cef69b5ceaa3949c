"""The write of accounts that are locked still compares their versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from balance_service.model import Account, AccountId, ChargeBalance
from balance_service.store import account as store
from common.db.database import Database, open_pools
from common.db.errors import StaleRead
from common.db.writes import execute_together
from common.ids import new_id
from common.money import Money
from deploy.local.postgres_roles import ServiceUrls

NAMES = ("ann", "bob")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def database(balance_database: ServiceUrls) -> AsyncIterator[Database]:
    opened = open_pools(balance_database.runtime, application_name="save test", pool_size=3)
    yield opened
    await opened.close()


async def charged(database: Database) -> dict[str, Account]:
    """Both accounts as they are now, without a lock, and each with a charge of 100 on them."""
    accounts = [AccountId(name, "KRW") for name in NAMES]
    async with database.begin() as connection:
        await store.open_accounts(connection, accounts)
        read = await store.load(connection, accounts, lock=False, wait_for_locks=True)
    for id_, account in read.found.items():
        charge = ChargeBalance(id_.user_id, Money("KRW", 100), new_id())
        account.charge(charge, new_id(), NOW)
    return {id_.user_id: account for id_, account in read.found.items()}


async def save(database: Database, accounts: dict[str, Account]) -> None:
    async with database.begin() as connection:
        entries = [entry for account in accounts.values() for entry in account.entries]
        changed = accounts.values()
        await execute_together(connection, [*store.saving(changed), *store.adding(entries)])


async def written(database: Database) -> list[tuple[int, int]]:
    """What is available in each account, and its number of entries."""
    statement = sa.text(
        "SELECT available_minor, (SELECT count(*) FROM ledger_entries e"
        " WHERE e.user_id = a.user_id) FROM accounts a ORDER BY user_id"
    )
    async with database.reads.connect() as connection:
        return [(row[0], row[1]) for row in await connection.execute(statement)]


async def test_accounts_and_entries_are_written_together(database: Database) -> None:
    await save(database, await charged(database))
    assert await written(database) == [(100, 1), (100, 1)]


async def test_an_account_of_another_version_leaves_nothing_of_the_batch(
    database: Database,
) -> None:
    """The ledger's sequence does not notice it: the entry's number is free."""
    stale = await charged(database)
    async with database.begin() as connection:
        raised = "UPDATE accounts SET version = version + 1 WHERE user_id = 'bob'"
        await connection.execute(sa.text(raised))
    with pytest.raises(StaleRead):
        await save(database, stale)
    assert await written(database) == [(0, 0), (0, 0)]
