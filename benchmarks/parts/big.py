"""Two stacks, of which one has a large ledger: 10,000,000 entries of 1,000,000 accounts.

The large one is filled by SQL, with books that balance.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from benchmarks import workloads
from benchmarks.load.clients import clients
from benchmarks.measure import Place
from benchmarks.shop import Shop, Size, open_accounts
from benchmarks.stacks import addresses, admin_url
from benchmarks.subjects import GrpcSubject
from deploy.local.stack import Stack

ENTRIES_EACH: Final = 10
AMOUNT_MINOR: Final = 10**12
SLICE: Final = 100_000
"""Accounts that one transaction fills."""
# Older than the stored responses, which the audit would otherwise expect.
_LONG_AGO: Final = "now() - interval '60 days'"
# Each account has charges only, all of the same amount.
_FILL: Final = f"""
    WITH users AS (SELECT 'user-' || n AS user_id FROM generate_series($1::int, $2::int - 1) AS n),
    opened AS (
        INSERT INTO accounts (user_id, currency_code, available_minor, version, update_time,
                              charged_minor, charged_at_version)
        SELECT user_id, 'KRW', {ENTRIES_EACH} * {AMOUNT_MINOR}::bigint, {ENTRIES_EACH}, {_LONG_AGO},
               {ENTRIES_EACH} * {AMOUNT_MINOR}::bigint, {ENTRIES_EACH}
          FROM users)
    INSERT INTO ledger_entries (user_id, currency_code, sequence, entry_id, kind, amount_minor,
                                balance_after_minor, request_id, create_time)
    SELECT user_id, 'KRW', sequence, gen_random_uuid(), 'CHARGE', {AMOUNT_MINOR},
           sequence * {AMOUNT_MINOR}::bigint, 'fill-' || sequence, {_LONG_AGO}
      FROM users CROSS JOIN generate_series(1, {ENTRIES_EACH}) AS sequence
"""


async def place(small: Stack, large: Stack, *, accounts: int) -> Place:
    """The subjects on both stacks; ``accounts`` are those of the large one."""
    shop = Shop(Size())
    few = shop.size.accounts
    async with clients("http2", {"balance": addresses(small)["balance"]}) as connected:
        await open_accounts(shop, connected)
    await _fill(admin_url(large, _database(large)), max(accounts, few))
    of_small, of_large = addresses(small), addresses(large)
    return Place(
        {
            "small": GrpcSubject(workloads.deduct(shop, accounts=few), of_small),
            "large, same accounts": GrpcSubject(workloads.deduct(shop, accounts=few), of_large),
            "large, all accounts": GrpcSubject(workloads.deduct(shop, accounts=accounts), of_large),
        },
        admin_url(large),
        large.plan.data_dir,
    )


def _database(stack: Stack) -> str:
    return stack.backends.databases["balance"].runtime.rsplit("/", 1)[1]


async def _fill(url: str, accounts: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        for first in range(0, accounts, SLICE):
            await connection.execute(_FILL, first, min(first + SLICE, accounts), timeout=600)
        await connection.execute("VACUUM (ANALYZE) accounts", timeout=600)
        await connection.execute("VACUUM (ANALYZE) ledger_entries", timeout=600)
        await connection.execute("CHECKPOINT", timeout=600)
    finally:
        await connection.close()
