"""BatchWrite as a client sees it: each item by itself, in order, and the call repeated whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.rpc.validation import BULK_BYTES_MAX
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1 import balance_pb2 as pb
from tests.support.balances import available, batch, charge, deduct, entry_of, refund, won
from tests.support.bulk_waits import BulkWaits
from tests.support.crowd import without_redis
from tests.support.databases import open_transaction
from tests.support.refusals import reason_of, refused

CLIENT_BYTES_MAX = 4 * 1024 * 1024
"""What gRPC's clients receive by default."""


async def results_of(balance: Any, request: pb.BatchWriteRequest, **options: Any) -> list[Any]:
    response = await balance.BatchWrite(request, **options)
    return list(response.results)


async def test_items_are_posted_as_by_their_single_calls(balance: Any) -> None:
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    await balance.DeductBalance(deduct("ann", 60, "d1"))
    items = batch(charge("bob", 7, "c1"), refund("ann", "d1", "r1"), refund("ann", "no", "r2"))
    charged, refunded, nothing = await results_of(balance, items)
    assert charged.posted.balance.available == won(7)
    entry = charged.posted.entry
    assert (await balance.GetLedgerEntry(entry_of("bob", entry.entry_id))).entry == entry
    assert refunded.posted.entry.kind == pb.LedgerEntry.KIND_REFUND
    assert refunded.posted.balance.available == won(100)
    assert nothing.WhichOneof("outcome") == "posted"
    assert not nothing.posted.HasField("entry")
    # A single call and an item are the same request.
    again = await balance.ChargeBalance(charge("bob", 7, "c1"))
    assert (again.entry, again.replayed) == (entry, True)
    [replay] = await results_of(balance, batch(charge("ann", 100, "c1")))
    assert replay.posted.replayed
    assert await available(balance, "ann") == 100


async def test_a_bad_item_is_refused_alone(balance: Any) -> None:
    good = [charge(f"u{number}", 1, "c") for number in range(300)]
    bad = [charge("", 0, "c"), deduct("nobody", 1, "d"), charge("x", 1, "c", currency="ABC")]
    items = batch(*good[:150], *bad, *good[150:])
    results = await results_of(balance, items)
    reasons = [reason_of(result.error) for result in results]
    refusals = ["INVALID_FIELD", "ACCOUNT_NOT_FOUND", "INVALID_FIELD"]
    assert reasons == [*[""] * 150, *refusals, *[""] * 150]
    users = [each.posted.entry.user_id for each in results if each.HasField("posted")]
    assert users == [request.user_id for request in good]


async def test_of_items_with_one_request_id_one_is_carried_out(balance: Any) -> None:
    same = await results_of(balance, batch(*[charge("ann", 5, "c")] * 300))
    assert [each.posted.replayed for each in same].count(False) == 1
    assert len({each.posted.entry.entry_id for each in same}) == 1
    [other] = await results_of(balance, batch(charge("ann", 6, "c")))
    assert reason_of(other.error) == "REQUEST_ID_REUSED"
    assert await available(balance, "ann") == 5


async def test_a_repeated_call_replays_what_was_posted_and_tries_the_rest(balance: Any) -> None:
    items = batch(*(charge(f"u{number}", 1, "c") for number in range(200)), deduct("zoe", 5, "d"))
    *first, short = await results_of(balance, items)
    assert reason_of(short.error) == "ACCOUNT_NOT_FOUND"
    await balance.ChargeBalance(charge("zoe", 5, "c"))
    *again, posted = await results_of(balance, items)
    assert all(each.posted.replayed for each in again)
    assert [each.posted.entry for each in again] == [each.posted.entry for each in first]
    assert not posted.posted.replayed
    assert await available(balance, "zoe") == 0


@without_redis
async def test_a_call_without_items_or_with_too_many_is_refused(balance: Any) -> None:
    for count in (0, 1_001):
        with refused("INVALID_FIELD", field="items"):
            await balance.BatchWrite(batch(*[charge("ann", 1, "c")] * count))
    with refused("ACCOUNT_NOT_FOUND"):
        await available(balance, "ann")


@without_redis
async def test_a_thousand_items_of_the_largest_fields_fit(balance: Any) -> None:
    """In the request's limit, and their results, posted or refused, in a client's."""
    most = [deduct("u" * 64, 10**15, f"{number:064}", order_id="o" * 64) for number in range(1_000)]
    request = batch(*most)
    assert request.ByteSize() == 220_000 < BULK_BYTES_MAX
    await balance.BatchWrite(batch(*(charge("u" * 64, 10**15, f"c{n}") for n in range(999))))
    response = await balance.BatchWrite(request)
    *posted, short = response.results
    assert {reason_of(result.error) for result in posted} == {""}
    assert reason_of(short.error) == "INSUFFICIENT_FUNDS"
    assert response.ByteSize() < CLIENT_BYTES_MAX
    worst = [deduct("", -1, "?" * 65, currency="?", order_id="?" * 65) for _ in range(1_000)]
    response = await balance.BatchWrite(batch(*worst))
    assert {reason_of(result.error) for result in response.results} == {"INVALID_FIELD"}
    assert response.ByteSize() < CLIENT_BYTES_MAX


@without_redis
async def test_items_not_decided_at_the_deadline_are_in_progress(
    balance: Any, balance_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One account is locked; the call returns in time, and repeated it replays the others."""
    await balance.ChargeBalance(charge("held", 1, "before"))
    items = batch(*(charge(user, 1, "c") for user in ("ann", "held", "bob")))
    lock = "SELECT * FROM accounts WHERE user_id = 'held' FOR UPDATE"
    waits = BulkWaits(monkeypatch)
    async with open_transaction(balance_database, lock):
        call = asyncio.ensure_future(results_of(balance, items, timeout=60.0))
        await waits.decided(2)
        waits.end()
        ann, held, bob = await call
    assert reason_of(held.error) == "REQUEST_IN_PROGRESS"
    assert "RetryInfo" in str(held.error)
    assert ann.posted.balance.version == bob.posted.balance.version == 1
    again = await results_of(balance, items)
    assert [again[0].posted.entry, again[2].posted.entry] == [ann.posted.entry, bob.posted.entry]
    assert [each.posted.replayed for each in again][::2] == [True, True]
    assert await available(balance, "held") == 2


@without_redis
async def test_another_method_keeps_its_limit_of_64_kib(balance: Any) -> None:
    with refused("INVALID_FIELD", field="request"):
        await balance.ChargeBalance(charge("x" * 65_536, 1, "c"))
    with refused("INVALID_FIELD", field="request"):
        await balance.BatchWrite(batch(charge("x" * BULK_BYTES_MAX, 1, "c")))
