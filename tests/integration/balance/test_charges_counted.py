"""What is available and what may still be refunded fit in 64 bits: no refund is ever too large.

They add up to the sum of all charges, which each charge compares with the limit.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.money import INT64_MAX
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.balances import available, charge, deduct, refund, won, written_before
from tests.support.databases import name_of
from tests.support.refusals import refused

LARGEST = 10**18
NINE_TIMES = [LARGEST, -LARGEST] * 9
LEFT = INT64_MAX - 9 * LARGEST
"""What can be charged after nine times the largest balance."""


@pytest.fixture
def sql(balance_database: ServiceUrls, postgres_server: PostgresServer) -> Any:
    """Runs SQL in the service's database as superuser."""
    return lambda text: postgres_server.run_sql(text, database=name_of(balance_database))


def counted(sql: Any, user_id: str) -> list[int]:
    """The sum of charges, the version it is of, and the account's."""
    columns = "charged_minor, charged_at_version, version"
    found = sql(f"SELECT {columns} FROM accounts WHERE user_id = '{user_id}'")
    return [int(number) for number in found.strip().split("|")]


async def charge_all(balance: Any, amount_minor: int) -> None:
    """As one charge, in parts of what a charge may be."""
    whole, rest = divmod(amount_minor, 10**15)
    parts = [10**15] * whole + [rest] * bool(rest)
    charges = (charge("ann", part, f"c{number}") for number, part in enumerate(parts))
    await asyncio.gather(*map(balance.ChargeBalance, charges))


async def refund_all(balance: Any) -> None:
    refunds = (refund("ann", f"old-{number}", f"r{number}") for number in range(2, 19, 2))
    await asyncio.gather(*map(balance.RefundDeduction, refunds))


async def test_a_charge_that_could_make_a_refund_too_large_is_refused(
    balance: Any, sql: Any
) -> None:
    sql(written_before("ann", *NINE_TIMES))
    await charge_all(balance, LEFT)
    with refused("BALANCE_LIMIT_EXCEEDED") as ended:
        await balance.ChargeBalance(charge("ann", 1, "over"))
    assert ended.refusal.metadata == {"user_id": "ann", "currency_code": "KRW"}
    await refund_all(balance)
    assert await available(balance, "ann") == INT64_MAX
    await balance.DeductBalance(deduct("ann", 10**15, "d"))
    with refused("BALANCE_LIMIT_EXCEEDED"):
        await balance.ChargeBalance(charge("ann", 1, "over"))


async def test_control_without_the_sum_of_charges_a_refund_is_too_large(
    balance: Any, sql: Any
) -> None:
    sql(written_before("ann", *NINE_TIMES))
    sql(
        "ALTER TABLE accounts DROP CONSTRAINT accounts_available_was_charged;"
        "UPDATE accounts SET charged_at_version = version;"
    )
    await charge_all(balance, LEFT + 1)
    with refused("INTERNAL"):
        await refund_all(balance)


async def test_charges_of_a_replica_that_counts_none_are_counted(balance: Any, sql: Any) -> None:
    """During a rollout, replicas of both releases write the same account in turns."""
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    sql(written_before("ann", 40, -90, version=1, available_minor=100))
    assert counted(sql, "ann") == [100, 1, 3]
    # Neither needs the sum, so neither reads the ledger.
    await balance.DeductBalance(deduct("ann", 10, "d1"))
    await balance.RefundDeduction(refund("ann", "old-3", "r1"))
    assert counted(sql, "ann") == [100, 1, 5]
    await asyncio.gather(
        balance.DeductBalance(deduct("ann", 1, "d2")),
        balance.ChargeBalance(charge("ann", 5, "c2")),
        balance.ChargeBalance(charge("ann", 7, "c3")),
    )
    assert counted(sql, "ann") == [152, 8, 8]
    sql(written_before("ann", 1_000, version=8, available_minor=141))
    await balance.ChargeBalance(charge("ann", 1, "c4"))
    assert counted(sql, "ann") == [1_153, 10, 10]
    assert await available(balance, "ann") == 1_142


async def test_an_account_above_the_limit_takes_no_charge(balance: Any, sql: Any) -> None:
    """An earlier release may have charged more; deductions and refunds go on."""
    sql(written_before("ann", *NINE_TIMES, LARGEST, -LARGEST, 1_000))
    with refused("BALANCE_LIMIT_EXCEEDED"):
        await balance.ChargeBalance(charge("ann", 1, "c"))
    await balance.DeductBalance(deduct("ann", 600, "d"))
    response = await balance.RefundDeduction(refund("ann", "old-2", "r"))
    assert response.balance.available == won(LARGEST + 400)
