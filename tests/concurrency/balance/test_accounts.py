"""Races for accounts: no charge is lost, nothing is spent twice, nothing is refunded twice.

Every race has its control, here or as a case without guards: the same calls with the guard removed
from outside must do the damage that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from balance_service.store import account as store
from common.money import INT64_MAX
from tests.support.balances import (
    available,
    charge,
    check_ledger,
    deduct,
    drop_constraints,
    forget_versions,
    refund,
    written_before,
)
from tests.support.crowd import RIVALS, Crowd, without_redis
from tests.support.guards import forget_row_locks
from tests.support.refusals import Results, outcome
from tests.support.rendezvous import meet_after


async def open_account(crowd: Crowd[Any], amount_minor: int) -> None:
    await crowd.turn(0).ChargeBalance(charge("ann", amount_minor, "first"))


async def left_in(crowd: Crowd[Any]) -> int:
    return await available(crowd.turn(0), "ann")


async def meet(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, method: str, requests: list[Any]
) -> Results:
    """Two replicas both read a balance of 100 before either writes."""
    await open_account(crowd, 100)
    meeting = meet_after(monkeypatch, store, "load")
    results = await crowd.race(method, requests)
    assert meeting.met
    return results


# -- charges (R1) --------------------------------------------------------------------------------


async def test_no_charge_is_lost(crowd: Crowd[Any]) -> None:
    await open_account(crowd, 100)
    charges = [charge("ann", 100, f"c{number}") for number in range(RIVALS)]
    charged, _ = await crowd.race("ChargeBalance", charges)
    assert sorted(each.entry.sequence for each in charged) == list(range(2, RIVALS + 2))
    assert await left_in(crowd) == 100 + RIVALS * 100
    check_ledger(crowd)


@pytest.mark.parametrize("guards", ["versions and constraints", "constraints", "none"])
@without_redis
async def test_two_charges_that_read_the_same_balance_both_count(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, guards: str
) -> None:
    """That an account's sequence is unique is enough."""
    if guards != "versions and constraints":
        forget_versions(monkeypatch)
    if guards == "none":
        drop_constraints(crowd)
    charges = [charge("ann", 100, request_id) for request_id in ("one", "two")]
    results = await meet(crowd, monkeypatch, "ChargeBalance", charges)
    assert not results.refusals
    if guards == "none":
        assert await left_in(crowd) == 200, "the lost update of R1"
    else:
        assert await left_in(crowd) == 300
        check_ledger(crowd)


# -- the limit of all charges --------------------------------------------------------------------


def charge_up_to_the_limit_but(crowd: Crowd[Any], room: int) -> None:
    """All of it is spent again."""
    amounts = [10**18] * 9 + [INT64_MAX - 9 * 10**18 - room]
    crowd.sql(written_before("ann", *(signed for each in amounts for signed in (each, -each))))


async def test_of_charges_at_the_limit_as_many_succeed_as_fit(crowd: Crowd[Any]) -> None:
    charge_up_to_the_limit_but(crowd, RIVALS // 2)
    charges = [charge("ann", 1, f"c{number}") for number in range(RIVALS)]
    results = await crowd.race("ChargeBalance", charges, until_final=True)
    assert results.refusals == {"BALANCE_LIMIT_EXCEEDED": RIVALS // 2}
    assert await left_in(crowd) == RIVALS // 2
    check_ledger(crowd)


@pytest.mark.parametrize("guards", [True, False], ids=["guards", "none"])
@without_redis
async def test_two_charges_that_read_the_same_sum_exceed_no_limit(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, *, guards: bool
) -> None:
    charge_up_to_the_limit_but(crowd, 1)
    if not guards:
        forget_versions(monkeypatch)
        drop_constraints(crowd)
    meeting = meet_after(monkeypatch, store, "load")
    charges = [charge("ann", 1, request_id) for request_id in ("one", "two")]
    results = await crowd.race("ChargeBalance", charges)
    assert meeting.met
    if guards:
        assert results.refusals == {"BALANCE_LIMIT_EXCEEDED": 1}
        check_ledger(crowd)
    else:
        assert not results.refusals, "charged beyond 64 bits"


# -- deductions (R2) -----------------------------------------------------------------------------


async def test_a_hundred_deductions_at_once_all_succeed(crowd: Crowd[Any]) -> None:
    await open_account(crowd, 100_000)
    deductions = [deduct("ann", 500, f"d{number}") for number in range(RIVALS)]
    assert not (await crowd.race("DeductBalance", deductions)).refusals
    assert await left_in(crowd) == 50_000
    check_ledger(crowd)


async def test_of_too_many_deductions_as_many_succeed_as_are_covered(crowd: Crowd[Any]) -> None:
    await open_account(crowd, 50_000)
    deductions = [deduct("ann", 500, f"d{number}") for number in range(3 * RIVALS)]
    results = await crowd.race("DeductBalance", deductions)
    assert results.refusals == {"INSUFFICIENT_FUNDS": 2 * RIVALS}
    assert await left_in(crowd) == 0
    check_ledger(crowd)


@without_redis
@pytest.mark.parametrize("constraint", [True, False], ids=["constraint", "none"])
async def test_the_constraint_alone_keeps_deductions_right(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, *, constraint: bool
) -> None:
    forget_row_locks(monkeypatch)
    forget_versions(monkeypatch)
    if not constraint:
        drop_constraints(crowd)
    deductions = [deduct("ann", 80, request_id) for request_id in ("one", "two")]
    results = await meet(crowd, monkeypatch, "DeductBalance", deductions)
    assert await left_in(crowd) == 20
    if constraint:
        assert results.refusals == {"INSUFFICIENT_FUNDS": 1}
        check_ledger(crowd)
    else:
        assert not results.refusals, "160 were spent of 100"


# -- duplicates and refunds ----------------------------------------------------------------------


async def test_a_hundred_duplicates_have_one_effect(crowd: Crowd[Any]) -> None:
    await open_account(crowd, 100_000)
    responses, refusals = await crowd.race("DeductBalance", [deduct("ann", 500, "same")] * RIVALS)
    assert not refusals
    assert sum(not each.replayed for each in responses) == 1
    assert len({each.entry.entry_id for each in responses}) == 1
    assert await left_in(crowd) == 99_500
    check_ledger(crowd)


@without_redis
async def test_control_without_records_a_duplicate_is_carried_out_again(
    crowd: Crowd[Any],
) -> None:
    crowd.sql("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_request_once;")
    await open_account(crowd, 100_000)
    for _ in range(2):
        crowd.sql("TRUNCATE answers;")
        await crowd.turn(0).DeductBalance(deduct("ann", 500, "same"))
    assert await left_in(crowd) == 99_000


async def test_a_deduction_and_its_refund_at_once_end_where_they_began(crowd: Crowd[Any]) -> None:
    await open_account(crowd, 1_000_000)

    async def deduct_and_refund_twice(number: int) -> list[Any]:
        one, other = crowd.turn(number), crowd.turn(number + 1)
        return await asyncio.gather(
            outcome(one.DeductBalance(deduct("ann", 500, f"d{number}"))),
            *(
                outcome(other.RefundDeduction(refund("ann", f"d{number}", f"r{number}-{twin}")))
                for twin in range(2)
            ),
        )

    for deducted, *refunded in await asyncio.gather(*map(deduct_and_refund_twice, range(RIVALS))):
        assert not Results.of(refunded).refusals
        entries = {each.entry.entry_id for each in refunded}
        assert len(entries) == 1, "both refunds return the same entry, or none"
        assert (deducted == "DEDUCTION_CANCELLED") == (entries == {""})
    assert await left_in(crowd) == 1_000_000
    check_ledger(crowd)


@without_redis
async def test_control_without_its_tombstone_a_refunded_deduction_is_carried_out(
    crowd: Crowd[Any],
) -> None:
    await open_account(crowd, 1_000)
    await crowd.turn(0).RefundDeduction(refund("ann", "d", "r"))
    crowd.sql("DELETE FROM answers WHERE state = 'CANCELLED';")
    await crowd.turn(1).DeductBalance(deduct("ann", 400, "d"))
    assert await left_in(crowd) == 600, "deducted after it had been refunded"
