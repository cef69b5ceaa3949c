"""A small part of the crash matrix and of the outages; all of both: `make test-crash`, `make
test-outages`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from tests.faults import outages
from tests.faults.matrix import SETTINGS, Matrix
from tests.faults.outages import DEPENDENCIES, Length
from tests.faults.places import Cell, cells

CELLS = (
    "lane.account.DeductBalance.before, error, first run",
    "lane.use_coupon.RedeemCoupon.after, cancel, first run",
    "lane.order.PayOrder.after, kill -9, first run",
    "call.ConfirmPayment.before, pause, first run",
    "gateway.confirm.after, reply lost, first run",
    "call.DeductBalance.after, kill -9, recovery",
    "lane.saga.WriteSaga.before, cancel, recovery",
    "lane.payment.RecordOutcome.after, pause, recovery",
)
AWAY = ("order database", "payment service", "gateway")


def named(names: Iterable[str]) -> list[Cell]:
    by_name = {str(cell): cell for cell in cells()}
    return [by_name[name] for name in names]


@pytest.mark.timeout(400)
def test_books_hold_after_crashes_in_first_run_and_recovery() -> None:
    lines: list[str] = []
    results = asyncio.run(Matrix(lines.append).run(named(CELLS)))
    assert results.complete, "\n".join(lines)
    assert len(results.held) == len(CELLS)


@pytest.mark.timeout(400)
def test_sagas_end_after_a_dependency_was_away() -> None:
    lines: list[str] = []
    chosen = [one for one in DEPENDENCIES if one.name in AWAY]
    short = Length("1 s", 1.0, SETTINGS)
    outcomes = asyncio.run(outages.run(lines.append, [short], chosen))
    assert all(outcome.held for outcome in outcomes), "\n".join(lines)
    assert len(outcomes) == len(AWAY)
