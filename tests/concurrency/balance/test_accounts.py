"""Accounts before a crowd: no charge is lost, nothing is spent twice, nothing is refunded twice.

Every race has its control: the same calls with the guard taken away from outside must do the damage
that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from balance_service import store
from tests.support.balance_crowd import (
    Crowd,
    drop_constraints,
    forget_versions,
)
from tests.support.balances import charge, deduct, refund
from tests.support.guards import forget_row_locks
from tests.support.refusals import outcome
from tests.support.rendezvous import meet_after

RIVALS = 100


async def together(crowd: Crowd, method: str, requests: list[Any]) -> list[Any]:
    """All at once, in turns over the replicas; responses, or reasons of refusal."""
    return await asyncio.gather(
        *(
            outcome(getattr(crowd.turn(number), method)(request))
            for number, request in enumerate(requests)
        )
    )


# -- charges (R1) --------------------------------------------------------------------------------


async def test_no_charge_is_lost(crowd: Crowd) -> None:
    await crowd.stubs[0].ChargeBalance(charge("ann", 100, "first"))
    charges = [charge("ann", 100, f"c{number}") for number in range(RIVALS)]
    results = await together(crowd, "ChargeBalance", charges)
    assert [result for result in results if isinstance(result, str)] == []
    assert await crowd.available("ann") == 100 + RIVALS * 100
    assert sorted(result.entry.sequence for result in results) == list(range(2, RIVALS + 2))
    crowd.assert_books()


async def two_charges_meet(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two replicas have both read a balance of 100 before either adds 100 to it."""
    await crowd.stubs[0].ChargeBalance(charge("ann", 100, "first"))
    meeting = meet_after(monkeypatch, store, "load")
    results = await together(
        crowd, "ChargeBalance", [charge("ann", 100, "one"), charge("ann", 100, "two")]
    )
    assert meeting.met
    return results


async def test_two_charges_that_have_read_the_same_balance_both_count(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = await two_charges_meet(bare_crowd, monkeypatch)
    assert [result for result in results if isinstance(result, str)] == []
    assert await bare_crowd.available("ann") == 300
    bare_crowd.assert_books()


async def test_control_without_versions_and_constraints_a_charge_is_lost(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_versions(monkeypatch)
    drop_constraints(bare_crowd)
    results = await two_charges_meet(bare_crowd, monkeypatch)
    assert [result for result in results if isinstance(result, str)] == []
    assert await bare_crowd.available("ann") == 200, "the lost update of R1"


async def test_the_constraint_alone_keeps_charges_right(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Redis, no version: that an account's sequence is unique is enough."""
    forget_versions(monkeypatch)
    results = await two_charges_meet(bare_crowd, monkeypatch)
    assert [result for result in results if isinstance(result, str)] == []
    assert await bare_crowd.available("ann") == 300
    bare_crowd.assert_books()


# -- deductions (R2) -----------------------------------------------------------------------------


async def test_a_hundred_deductions_at_once_all_succeed(crowd: Crowd) -> None:
    await crowd.stubs[0].ChargeBalance(charge("ann", 100_000, "first"))
    deductions = [deduct("ann", 500, f"d{number}") for number in range(RIVALS)]
    results = await together(crowd, "DeductBalance", deductions)
    assert [result for result in results if isinstance(result, str)] == []
    assert await crowd.available("ann") == 50_000
    crowd.assert_books()


async def test_what_is_there_is_spent_once(crowd: Crowd) -> None:
    await crowd.stubs[0].ChargeBalance(charge("ann", 50_000, "first"))
    deductions = [deduct("ann", 500, f"d{number}") for number in range(3 * RIVALS)]
    results = await together(crowd, "DeductBalance", deductions)
    refusals = Counter(result for result in results if isinstance(result, str))
    assert refusals == {"INSUFFICIENT_FUNDS": 2 * RIVALS}
    assert await crowd.available("ann") == 0
    crowd.assert_books()


async def two_deductions_meet(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two replicas have both read a balance of 100 before either takes 80 from it."""
    await crowd.stubs[0].ChargeBalance(charge("ann", 100, "first"))
    meeting = meet_after(monkeypatch, store, "load")
    results = await together(
        crowd, "DeductBalance", [deduct("ann", 80, "one"), deduct("ann", 80, "two")]
    )
    assert meeting.met
    return results


async def test_control_without_locks_and_constraints_money_is_spent_twice(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_row_locks(monkeypatch)
    forget_versions(monkeypatch)
    drop_constraints(bare_crowd)
    results = await two_deductions_meet(bare_crowd, monkeypatch)
    assert [result for result in results if isinstance(result, str)] == []
    assert await bare_crowd.available("ann") == 20, "160 were spent of 100"


async def test_the_constraint_alone_keeps_deductions_right(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_row_locks(monkeypatch)
    forget_versions(monkeypatch)
    results = await two_deductions_meet(bare_crowd, monkeypatch)
    assert sorted(isinstance(result, str) for result in results) == [False, True]
    assert "INSUFFICIENT_FUNDS" in results
    assert await bare_crowd.available("ann") == 20
    bare_crowd.assert_books()


# -- duplicates and refunds ----------------------------------------------------------------------


async def test_a_hundred_duplicates_have_one_effect(crowd: Crowd) -> None:
    await crowd.stubs[0].ChargeBalance(charge("ann", 100_000, "first"))
    results = await together(crowd, "DeductBalance", [deduct("ann", 500, "same")] * RIVALS)
    assert [result for result in results if isinstance(result, str)] == []
    assert sum(not result.replayed for result in results) == 1
    assert len({result.entry.entry_id for result in results}) == 1
    assert await crowd.available("ann") == 99_500
    crowd.assert_books()


async def test_control_without_answers_a_duplicate_is_carried_out_again(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_crowd.run("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_request_once;")
    await bare_crowd.stubs[0].ChargeBalance(charge("ann", 100_000, "first"))
    for _ in range(2):
        bare_crowd.run("TRUNCATE answers;")
        await bare_crowd.stubs[0].DeductBalance(deduct("ann", 500, "same"))
    assert await bare_crowd.available("ann") == 99_000


async def test_a_deduction_and_its_refund_at_once_end_where_they_began(crowd: Crowd) -> None:
    await crowd.stubs[0].ChargeBalance(charge("ann", 1_000_000, "first"))

    async def pair(number: int) -> tuple[Any, list[Any]]:
        deduction = deduct("ann", 500, f"d{number}")
        refunds = [refund("ann", f"d{number}", f"r{number}-{twin}") for twin in range(2)]
        deducted, *refunded = await asyncio.gather(
            outcome(crowd.turn(number).DeductBalance(deduction)),
            *(outcome(crowd.turn(number + 1).RefundDeduction(request)) for request in refunds),
        )
        return deducted, refunded

    pairs = await asyncio.gather(*(pair(number) for number in range(RIVALS)))
    for deducted, refunded in pairs:
        assert [result for result in refunded if isinstance(result, str)] == []
        entries = {result.entry.entry_id for result in refunded}
        assert len(entries) == 1, "both refunds tell of the same entry, or of none"
        assert (deducted == "DEDUCTION_CANCELLED") == (entries == {""})
    assert await crowd.available("ann") == 1_000_000
    crowd.assert_books()


async def test_control_without_the_planted_cancellation_a_late_deduction_lands(
    bare_crowd: Crowd,
) -> None:
    await bare_crowd.stubs[0].ChargeBalance(charge("ann", 1_000, "first"))
    await bare_crowd.stubs[0].RefundDeduction(refund("ann", "d", "r"))
    bare_crowd.run("DELETE FROM answers WHERE state = 'CANCELLED';")
    await bare_crowd.stubs[1].DeductBalance(deduct("ann", 400, "d"))
    assert await bare_crowd.available("ann") == 600, "taken after it had been undone"
