"""BalanceService as a client sees it: charge, deduct, refund, replay, refuse, list."""

from __future__ import annotations

import asyncio
from typing import Any

from tally.balance.v1 import balance_pb2 as pb
from tests.support.balances import charge, deduct, refund, won
from tests.support.refusals import refused


async def test_a_charge_opens_the_account(balance: Any) -> None:
    response = await balance.ChargeBalance(charge("ann", 100, "c1"))
    assert response.balance.available == won(100)
    assert response.balance.version == 1
    assert response.entry.sequence == 1
    assert response.entry.kind == pb.LedgerEntry.KIND_CHARGE
    assert response.entry.balance_after == won(100)
    assert not response.replayed
    got = await balance.GetBalance(pb.GetBalanceRequest(user_id="ann", currency_code="KRW"))
    assert got.balance == response.balance


async def test_the_same_request_is_answered_again_and_has_one_effect(balance: Any) -> None:
    first = await balance.ChargeBalance(charge("ann", 100, "c1"))
    again = await balance.ChargeBalance(charge("ann", 100, "c1"))
    assert again.replayed
    assert (again.balance, again.entry) == (first.balance, first.entry)
    with refused("REQUEST_ID_REUSED"):
        await balance.ChargeBalance(charge("ann", 101, "c1"))
    # One request_id a method and user: neither of these has been asked before.
    await balance.DeductBalance(deduct("ann", 30, "c1"))
    await balance.ChargeBalance(charge("bob", 5, "c1"))
    got = await balance.GetBalance(pb.GetBalanceRequest(user_id="ann", currency_code="KRW"))
    assert got.balance.available == won(70)


async def test_a_deduction_takes_what_is_there_and_no_more(balance: Any) -> None:
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    response = await balance.DeductBalance(deduct("ann", 60, "d1", order_id="order-1"))
    assert response.entry.amount == won(-60)
    assert response.entry.order_id == "order-1"
    with refused("INSUFFICIENT_FUNDS") as told:
        await balance.DeductBalance(deduct("ann", 41, "d2"))
    assert told.refusal is not None
    assert told.refusal.quota[0].subject == "account:ann:KRW"
    # A refusal is not stored: the same id may try again once there is enough.
    await balance.ChargeBalance(charge("ann", 1, "c2"))
    again = await balance.DeductBalance(deduct("ann", 41, "d2"))
    assert not again.replayed
    assert again.balance.available == won(0)


async def test_an_account_begins_with_its_first_charge(balance: Any) -> None:
    with refused("ACCOUNT_NOT_FOUND"):
        await balance.GetBalance(pb.GetBalanceRequest(user_id="ann", currency_code="KRW"))
    with refused("ACCOUNT_NOT_FOUND"):
        await balance.DeductBalance(deduct("ann", 1, "d1"))
    await balance.ChargeBalance(charge("ann", 1, "c1"))
    with refused("ACCOUNT_NOT_FOUND"):
        await balance.DeductBalance(deduct("ann", 1, "d1", currency="USD"))


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
        assert again.replayed
        assert again.entry == first.entry
    with refused("DEDUCTION_CANCELLED"):
        await balance.DeductBalance(deduct("ann", 60, "d1", order_id="o1"))
    with refused("REQUEST_ID_REUSED"):
        await balance.RefundDeduction(refund("ann", "d9", "r1"))


async def test_a_refund_before_its_deduction_keeps_it_from_happening(balance: Any) -> None:
    for _ in range(2):
        nothing = await balance.RefundDeduction(refund("ann", "d1", "r1"))
        assert not nothing.HasField("entry")
        assert not nothing.HasField("balance")
    other = await balance.RefundDeduction(refund("ann", "d1", "r2"))
    assert not other.HasField("entry")
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    with refused("DEDUCTION_CANCELLED"):
        await balance.DeductBalance(deduct("ann", 60, "d1"))
    got = await balance.GetBalance(pb.GetBalanceRequest(user_id="ann", currency_code="KRW"))
    assert got.balance.available == won(100)


async def test_a_balance_has_a_limit_that_refunds_do_not_know(balance: Any) -> None:
    charges = [charge("ann", 10**15, f"c{number}") for number in range(1_000)]
    await asyncio.gather(*(balance.ChargeBalance(request) for request in charges))
    with refused("BALANCE_LIMIT_EXCEEDED"):
        await balance.ChargeBalance(charge("ann", 1, "over"))
    await balance.DeductBalance(deduct("ann", 10**15, "d1"))
    await balance.ChargeBalance(charge("ann", 10**15, "again"))
    response = await balance.RefundDeduction(refund("ann", "d1", "r1"))
    assert response.balance.available == won(10**18 + 10**15)


async def test_the_ledger_is_listed_in_pages_newest_first(balance: Any) -> None:
    for number in range(7):
        await balance.ChargeBalance(charge("ann", 1 + number, f"c{number}"))
    sequences: list[int] = []
    token = ""
    while True:
        page = await balance.ListLedgerEntries(
            pb.ListLedgerEntriesRequest(
                user_id="ann", currency_code="KRW", page_size=3, page_token=token
            )
        )
        sequences += [entry.sequence for entry in page.entries]
        assert len(page.entries) <= 3
        token = page.next_page_token
        if not token:
            break
        with refused("INVALID_PAGE_TOKEN"):
            await balance.ListLedgerEntries(
                pb.ListLedgerEntriesRequest(user_id="bob", currency_code="KRW", page_token=token)
            )
    assert sequences == [7, 6, 5, 4, 3, 2, 1]
    with refused("INVALID_PAGE_TOKEN"):
        await balance.ListLedgerEntries(
            pb.ListLedgerEntriesRequest(user_id="ann", currency_code="KRW", page_token="nonsense")
        )


async def test_currencies_are_accounts_apart(balance: Any) -> None:
    await balance.ChargeBalance(charge("ann", 100, "c1"))
    await balance.ChargeBalance(charge("ann", 7, "c2", currency="USD"))
    response = await balance.DeductBalance(deduct("ann", 7, "d1", currency="USD"))
    assert response.balance.available == won(0, currency="USD")
    refunded = await balance.RefundDeduction(refund("ann", "d1", "r1"))
    assert refunded.balance.available == won(7, currency="USD")
