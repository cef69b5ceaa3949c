"""A row that somebody else holds delays its own commands and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tests.support.balance_crowd import Crowd
from tests.support.balances import charge, deduct, refund
from tests.support.refusals import outcome

OTHERS = 100


@asynccontextmanager
async def transaction(crowd: Crowd, *statements: str) -> AsyncIterator[None]:
    """Somebody else's transaction, open until the end of the block, then rolled back."""
    connection = await asyncpg.connect(crowd.urls.runtime)
    try:
        started = connection.transaction()
        await started.start()
        for statement in statements:
            await connection.execute(statement)
        yield
        await started.rollback()
    finally:
        await connection.close()


async def everyone_else(crowd: Crowd, *, turn: str) -> list[Any]:
    return await asyncio.gather(
        *(
            outcome(crowd.turn(number).ChargeBalance(charge(f"user-{number}", 10, turn)))
            for number in range(OTHERS)
        )
    )


async def test_a_held_account_delays_only_its_own_commands(crowd: Crowd) -> None:
    for user in ("ann", "bob"):
        await crowd.stubs[0].ChargeBalance(charge(user, 1_000, "first"))
    async with transaction(crowd, "SELECT FROM accounts WHERE user_id = 'ann' FOR UPDATE"):
        waiting = [
            asyncio.ensure_future(outcome(crowd.stubs[0].DeductBalance(deduct("ann", 1, "d")))),
            asyncio.ensure_future(outcome(crowd.stubs[1].ChargeBalance(charge("ann", 5, "c")))),
            asyncio.ensure_future(outcome(crowd.stubs[1].RefundDeduction(refund("ann", "x", "r")))),
        ]
        for turn in ("one", "two"):
            results = await everyone_else(crowd, turn=turn)
            assert [result for result in results if isinstance(result, str)] == []
        taken = await crowd.stubs[0].DeductBalance(deduct("bob", 1, "d"))
        assert not isinstance(taken, str)
        assert not any(call.done() for call in waiting)
    results = await asyncio.gather(*waiting)
    assert [result for result in results if isinstance(result, str)] == []
    assert await crowd.available("ann") == 1_004
    crowd.assert_books()


async def test_five_held_accounts_do_not_delay_a_sixth(crowd: Crowd) -> None:
    users = [f"held-{number}" for number in range(5)]
    for user in (*users, "free"):
        await crowd.stubs[0].ChargeBalance(charge(user, 1_000, "first"))
    async with transaction(
        crowd, "SELECT FROM accounts WHERE user_id LIKE 'held-%' ORDER BY user_id FOR UPDATE"
    ):
        waiting = [
            asyncio.ensure_future(outcome(crowd.stubs[0].DeductBalance(deduct(user, 1, "d"))))
            for user in users
        ]
        for number in range(20):
            await crowd.stubs[0].DeductBalance(deduct("free", 1, f"d{number}"))
        assert not any(call.done() for call in waiting)
    results = await asyncio.gather(*waiting)
    assert [result for result in results if isinstance(result, str)] == []


async def test_a_new_account_not_yet_committed_delays_only_its_own_commands(crowd: Crowd) -> None:
    insert = "INSERT INTO accounts VALUES ('ann', 'KRW', 0, 0, now())"
    async with transaction(crowd, insert):
        first = asyncio.ensure_future(outcome(crowd.stubs[0].ChargeBalance(charge("ann", 5, "c"))))
        results = await everyone_else(crowd, turn="one")
        assert [result for result in results if isinstance(result, str)] == []
        assert not first.done()
    assert not isinstance(await first, str)
    assert await crowd.available("ann") == 5


async def test_an_answer_not_yet_committed_delays_only_its_own_command(crowd: Crowd) -> None:
    await crowd.stubs[0].ChargeBalance(charge("ann", 1_000, "first"))
    insert = (
        "INSERT INTO answers (method, scope, request_id, state, digest, body) "
        "VALUES ('DeductBalance', 'ann', 'd', 'CANCELLED', '', NULL)"
    )
    async with transaction(crowd, insert):
        waiting = asyncio.ensure_future(
            outcome(crowd.stubs[0].DeductBalance(deduct("ann", 1, "d")))
        )
        results = await everyone_else(crowd, turn="one")
        assert [result for result in results if isinstance(result, str)] == []
        assert not waiting.done()
    assert not isinstance(await waiting, str)
    assert await crowd.available("ann") == 999
