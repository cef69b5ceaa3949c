"""The charges of existing accounts are summed while replicas of the earlier release write them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from common.db.migrations import migrate, run
from common.db.migrations.run import SchemaInUse
from common.money import INT64_MAX
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.balances import written_before
from tests.support.databases import ROOT, open_transaction

VERSIONS = ROOT / "balance_service" / "migrations"
ACCOUNTS = 250
"""More than two transactions of the migration change."""
SUMS = "SELECT user_id, charged_minor, charged_at_version, version FROM accounts"
REVISION = "SELECT version_num FROM alembic_version"


@pytest.fixture
def urls(postgres_server: PostgresServer) -> Iterator[ServiceUrls]:
    """An empty database."""
    postgres_server.provision("balance")
    try:
        yield postgres_server.create_database("test_balance_charges", service="balance")
    finally:
        postgres_server.drop_database("test_balance_charges")


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The revisions of the earlier release."""
    shutil.copy(VERSIONS / "0001_accounts_and_ledger.py", tmp_path)
    return tmp_path


async def test_the_charges_of_existing_accounts_are_summed(
    urls: ServiceUrls, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOCK_TIMEOUT_S", 0.2)
    await migrate(urls.owner, released)
    connection = await asyncpg.connect(urls.owner)
    for number in range(ACCOUNTS):
        await connection.execute(written_before(f"user-{number:03}", 100, -30, 7 + number))
    await connection.execute(written_before("beyond", *[10**18, -(10**18)] * 10))
    await connection.execute(
        "INSERT INTO accounts (user_id, currency_code, available_minor, version, update_time)"
        " VALUES ('opened', 'KRW', 0, 0, now())"
    )

    shutil.copy(VERSIONS / "0002_sum_of_charges.py", released)
    await migrate(urls.owner, released)
    held = "SELECT FROM accounts WHERE user_id = 'user-150' FOR UPDATE"
    async with open_transaction(urls, held):
        with pytest.raises(SchemaInUse):
            await migrate(urls.owner, VERSIONS)
    # Replicas of both releases serve on that; what was summed stays.
    assert await connection.fetchval(REVISION) == "balance_0002"
    summed = "SELECT count(*) FROM accounts WHERE charged_at_version = version"
    assert await connection.fetchval(summed) == 100
    await connection.execute(written_before("user-000", 5, version=3, available_minor=77))

    await migrate(urls.owner, VERSIONS)
    assert await connection.fetchval(REVISION) == "balance_0005"
    found = {user: tuple(numbers) for user, *numbers in await connection.fetch(SUMS)}
    await connection.close()
    expected = {f"user-{number:03}": (107 + number, 3, 3) for number in range(ACCOUNTS)}
    expected |= {"user-000": (112, 4, 4), "beyond": (INT64_MAX, 20, 20), "opened": (0, 0, 0)}
    assert found == expected
