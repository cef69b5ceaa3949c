"""BalanceService as a client sees it: charge, deduct, refund, replay, refuse, list."""

from __future__ import annotations

import asyncio
from typing import Any

from tally.balance.v1 import balance_pb2 as pb
from tests.support.balances import available, balance_of, charge, deduct, entry_of, refund, won
from tests.support.pages import pages_of
from tests.support.refusals import refused


async def test_a_charge_opens_the_account(balance: Any) -> None:
    response = await balance.ChargeBalance(charge("ann", 100, "c1"))
    assert response.balance.available == won(100)
    assert response.balance.version == 1
    assert response.entry.sequence == 1
    assert response.entry.kind == pb.LedgerEntry.KIND_CHARGE
    assert response.entry.balance_after == won(100)
    assert not response.replayed
    assert (await balance.GetBalance(balance_of("ann"))).balance == response.balance


async def test_a_repeated_request_is_replayed_and_has_one_effect(balance: Any) -> None:
    first = await balance.ChargeBalance(charge("ann", 100, "c1"))
    again = await balance.ChargeBalance(charge("ann", 100, "c1"))
    assert again.replayed
    assert (again.balance, again.entry) == (first.balance, first.entry)
    # A request_id belongs to a method and a user: these are other requests.
    await balance.DeductBalance(deduct("ann", 30, "c1"))
    await balance.ChargeBalance(charge("bob", 5, "c1"))
    assert await available(balance, "ann") == 70


async def test_a_deduction_takes_no_more_than_there_is(balance: Any) -> None:
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    response = await balance.DeductBalance(deduct("ann", 60, "d1", order_id="order-1"))
    assert response.entry.amount == won(-60)
    assert response.entry.order_id == "order-1"
    with refused("INSUFFICIENT_FUNDS") as ended:
        await balance.DeductBalance(deduct("ann", 41, "d2"))
    assert ended.refusal.quota[0].subject == "account:ann:KRW"
    # A refusal is not stored: the same id may try again once there is enough.
    await balance.ChargeBalance(charge("ann", 1, "c2"))
    again = await balance.DeductBalance(deduct("ann", 41, "d2"))
    assert not again.replayed
    assert again.balance.available == won(0)


async def test_a_refund_puts_the_whole_deduction_back_once(balance: Any) -> None:
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    await balance.DeductBalance(deduct("ann", 60, "d1", order_id="o1"))
    first = await balance.RefundDeduction(refund("ann", "d1", "r1"))
    assert first.entry.kind == pb.LedgerEntry.KIND_REFUND
    assert first.entry.amount == won(60)
    assert first.entry.order_id == "o1"
    assert first.balance.available == won(100)
    assert not first.replayed
    for request_id in ("r1", "r2", "r2"):
        again = await balance.RefundDeduction(refund("ann", "d1", request_id))
        assert (again.replayed, again.entry) == (True, first.entry)
    with refused("DEDUCTION_CANCELLED"):
        await balance.DeductBalance(deduct("ann", 60, "d1", order_id="o1"))


async def test_a_deduction_refunded_beforehand_is_refused(balance: Any) -> None:
    for request_id in ("r1", "r1", "r2"):
        nothing = await balance.RefundDeduction(refund("ann", "d1", request_id))
        assert not nothing.HasField("entry")
        assert not nothing.HasField("balance")
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    with refused("DEDUCTION_CANCELLED"):
        await balance.DeductBalance(deduct("ann", 60, "d1"))
    assert await available(balance, "ann") == 100


async def test_the_limit_of_a_balance_holds_for_charges_not_for_refunds(balance: Any) -> None:
    charges = [charge("ann", 10**15, f"c{number}") for number in range(1_000)]
    await asyncio.gather(*map(balance.ChargeBalance, charges))
    with refused("BALANCE_LIMIT_EXCEEDED"):
        await balance.ChargeBalance(charge("ann", 1, "over"))
    await balance.DeductBalance(deduct("ann", 10**15, "d1"))
    await balance.ChargeBalance(charge("ann", 10**15, "again"))
    response = await balance.RefundDeduction(refund("ann", "d1", "r1"))
    assert response.balance.available == won(10**18 + 10**15)


async def test_a_user_gets_own_entries_only(balance: Any) -> None:
    charged = (await balance.ChargeBalance(charge("ann", 100, "c1"))).entry
    dollars = (await balance.ChargeBalance(charge("ann", 7, "c2", currency="USD"))).entry
    deducted = (await balance.DeductBalance(deduct("ann", 60, "d1", order_id="o1"))).entry
    refunded = (await balance.RefundDeduction(refund("ann", "d1", "r1"))).entry
    of_bob = (await balance.ChargeBalance(charge("bob", 5, "c1"))).entry
    for entry in (charged, dollars, deducted, refunded):
        assert (await balance.GetLedgerEntry(entry_of("ann", entry.entry_id))).entry == entry
    with refused("LEDGER_ENTRY_NOT_FOUND") as ended:
        await balance.GetLedgerEntry(entry_of("ann", of_bob.entry_id))
    assert ended.refusal.metadata == {"entry_id": of_bob.entry_id, "user_id": "ann"}


async def test_the_ledger_is_listed_in_pages_newest_first(balance: Any) -> None:
    for number in range(7):
        await balance.ChargeBalance(charge("ann", 1 + number, f"c{number}"))
    asked = pb.ListLedgerEntriesRequest(user_id="ann", currency_code="KRW", page_size=3)
    pages = await pages_of(balance.ListLedgerEntries, asked)
    assert [[entry.sequence for entry in page] for page in pages] == [[7, 6, 5], [4, 3, 2], [1]]


async def test_each_currency_is_an_account_of_its_own(balance: Any) -> None:
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    await balance.ChargeBalance(charge("ann", 7, "c2", currency="USD"))
    response = await balance.DeductBalance(deduct("ann", 7, "d1", currency="USD"))
    assert response.balance.available == won(0, currency="USD")
    refunded = await balance.RefundDeduction(refund("ann", "d1", "r1"))
    assert refunded.balance.available == won(7, currency="USD")
