"""A row that another transaction has locked delays only the commands that need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.support.balances import available, charge, check_ledger, deduct, refund
from tests.support.crowd import RIVALS, Crowd
from tests.support.refusals import Results, outcome


@asynccontextmanager
async def transaction(crowd: Crowd[Any], statement: str) -> AsyncIterator[None]:
    """Another transaction, open until the end of the block, then rolled back."""
    connection = await asyncpg.connect(crowd.urls.runtime)
    try:
        started = connection.transaction()
        await started.start()
        await connection.execute(statement)
        yield
        await started.rollback()
    finally:
        await connection.close()


async def charge_others(crowd: Crowd[Any], request_id: str) -> None:
    """Everybody else's commands succeed."""
    charges = [charge(f"user-{number}", 10, request_id) for number in range(RIVALS)]
    assert not (await crowd.race("ChargeBalance", charges)).refusals


async def test_a_locked_account_delays_only_its_own_commands(crowd: Crowd[Any]) -> None:
    one, other = crowd.clients
    for user in ("ann", "bob"):
        await one.ChargeBalance(charge(user, 1_000, "first"))
    async with transaction(crowd, "SELECT FROM accounts WHERE user_id = 'ann' FOR UPDATE"):
        waiting = [
            asyncio.ensure_future(outcome(call))
            for call in (
                one.DeductBalance(deduct("ann", 1, "d")),
                other.ChargeBalance(charge("ann", 5, "c")),
                other.RefundDeduction(refund("ann", "x", "r")),
            )
        ]
        for request_id in ("one", "two"):
            await charge_others(crowd, request_id)
        await one.DeductBalance(deduct("bob", 1, "d"))
        assert not any(call.done() for call in waiting)
    assert not Results.of(await asyncio.gather(*waiting)).refusals
    assert await available(one, "ann") == 1_004
    check_ledger(crowd)


async def test_five_locked_accounts_do_not_delay_a_sixth(crowd: Crowd[Any]) -> None:
    balance = crowd.turn(0)
    users = [f"locked-{number}" for number in range(5)]
    for user in (*users, "free"):
        await balance.ChargeBalance(charge(user, 1_000, "first"))
    lock = "SELECT FROM accounts WHERE user_id LIKE 'locked-%' ORDER BY user_id FOR UPDATE"
    async with transaction(crowd, lock):
        waiting = [
            asyncio.ensure_future(outcome(balance.DeductBalance(deduct(user, 1, "d"))))
            for user in users
        ]
        for number in range(20):
            await balance.DeductBalance(deduct("free", 1, f"d{number}"))
        assert not any(call.done() for call in waiting)
    assert not Results.of(await asyncio.gather(*waiting)).refusals


INSERT_ACCOUNT = "INSERT INTO accounts VALUES ('ann', 'KRW', 0, 0, now())"
INSERT_RECORD = (
    "INSERT INTO answers (method, scope, request_id, state, digest, body) "
    "VALUES ('ChargeBalance', 'ann', 'c', 'CANCELLED', '', NULL)"
)


@pytest.mark.parametrize(
    ("insert", "balance"),
    [(INSERT_ACCOUNT, 5), (INSERT_RECORD, 1_005)],
    ids=["account", "record"],
)
async def test_an_uncommitted_row_delays_only_the_command_that_inserts_it_too(
    crowd: Crowd[Any], insert: str, balance: int
) -> None:
    one = crowd.turn(0)
    if insert is INSERT_RECORD:
        await one.ChargeBalance(charge("ann", 1_000, "first"))
    async with transaction(crowd, insert):
        waiting = asyncio.ensure_future(outcome(one.ChargeBalance(charge("ann", 5, "c"))))
        await charge_others(crowd, "one")
        assert not waiting.done()
    assert not isinstance(await waiting, str)
    assert await available(one, "ann") == balance
