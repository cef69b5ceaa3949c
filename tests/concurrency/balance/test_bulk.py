"""Bulk calls that meet: duplicates, single calls on the same accounts, and a replica's death."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.integration.start.process import process
from tests.support.balances import batch, charge, check_ledger, deduct, refund
from tests.support.crowd import Crowd, without_redis
from tests.support.databases import open_transaction
from tests.support.guards import forget_records
from tests.support.refusals import reason_of

ITEMS = 500
CHARGED = "SELECT count(*) FROM ledger_entries WHERE kind = 'CHARGE';"


def job() -> pb.BatchWriteRequest:
    """Points for all users."""
    return batch(*(charge(f"u{number}", 5, f"job-{number}") for number in range(ITEMS)))


def replays(response: Any) -> list[bool]:
    return [result.posted.replayed for result in response.results]


async def final(crowd: Crowd[Any], turn: int, request: pb.BatchWriteRequest) -> Any:
    """The call's response, repeated whole until no item may be repeated."""
    while True:
        response = await crowd.turn(turn).BatchWrite(request)
        if not any("RetryInfo" in str(result.error) for result in response.results):
            return response


async def test_four_duplicates_of_a_bulk_call_have_one_effect_per_item(crowd: Crowd[Any]) -> None:
    responses = await asyncio.gather(*(final(crowd, turn, job()) for turn in range(4)))
    assert not any(reason_of(each.error) for response in responses for each in response.results)
    assert crowd.number(CHARGED) == ITEMS
    # Whatever replica decided an item, the other three calls replay it.
    decided = zip(*map(replays, responses), strict=True)
    assert {sum(of_item) for of_item in decided} == {3}
    entries = [[each.posted.entry.entry_id for each in one.results] for one in responses]
    assert all(of_call == entries[0] for of_call in entries)
    check_ledger(crowd)


@without_redis
async def test_control_without_records_each_duplicate_is_carried_out(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_records(monkeypatch)
    crowd.sql("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_request_once;")
    for turn in range(2):
        await final(crowd, turn, job())
    assert crowd.number(CHARGED) == 2 * ITEMS


async def test_bulk_and_single_calls_on_the_same_accounts_lose_nothing(crowd: Crowd[Any]) -> None:
    users = [f"u{number}" for number in range(50)]
    await final(crowd, 0, batch(*(charge(user, 1_000, "first") for user in users)))
    bulk = [
        batch(
            *(charge(user, 3, f"c{turn}") for user in users),
            *(deduct(user, 2, f"d{turn}") for user in users),
            *(refund(user, f"d{turn}", f"r{turn}") for user in users),
        )
        for turn in range(4)
    ]
    singles = [charge(user, 1, f"s{n}") for user in users for n in range(4)]
    responses, (charged, refusals) = await asyncio.gather(
        asyncio.gather(*(final(crowd, *each) for each in enumerate(bulk))),
        crowd.race("ChargeBalance", singles, until_final=True),
    )
    assert len(charged) == len(singles)
    assert not refusals
    reasons = {reason_of(each.error) for one in responses for each in one.results}
    # A refund may be decided before its deduction, on another replica's batch or after a conflict.
    assert reasons <= {"", "DEDUCTION_CANCELLED"}
    total = "SELECT sum(available_minor) FROM accounts;"
    assert crowd.number(total) == len(users) * (1_000 + 4 * 3 + 4 * 1)
    check_ledger(crowd)


@without_redis
async def test_a_bulk_call_whose_replica_is_killed_is_completed_by_its_repetition(
    crowd: Crowd[Any],
) -> None:
    """Killed when all is posted but one item, whose account another transaction has locked."""
    await crowd.turn(0).ChargeBalance(charge("u7", 1, "before"))
    lock = "SELECT * FROM accounts WHERE user_id = 'u7' FOR UPDATE"
    environment = {
        "TALLY_BALANCE_DATABASE_URL": crowd.urls.runtime,
        "TALLY_BALANCE_REDIS_URL": "",
        "TALLY_BALANCE_BIND": "127.0.0.1:0",
    }
    async with (
        open_transaction(crowd.urls, lock),
        process("balance_service", **environment) as doomed,
    ):
        port = (await doomed.line("listening"))["port"]
        await doomed.line("ready")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            stub: Any = BalanceServiceStub(opened)
            call = asyncio.ensure_future(stub.BatchWrite(job()))
            while crowd.number(CHARGED) < ITEMS:  # noqa: ASYNC110 - seen from outside only
                await asyncio.sleep(0.01)
            doomed.process.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    response = await final(crowd, 0, job())
    assert [number for number, done in enumerate(replays(response)) if not done] == [7]
    assert crowd.number(CHARGED) == ITEMS + 1
    check_ledger(crowd)
