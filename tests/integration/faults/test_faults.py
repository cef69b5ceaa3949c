"""A small part of the crash matrix and of the outages; all of both: `make test-crash`, `make
test-outages`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest
import pytest_asyncio

from tests.faults.load import Customers, fresh_stack
from tests.faults.matrix import SETTINGS, Matrix, batches
from tests.faults.outages import DEPENDENCIES, Length, outage
from tests.faults.places import Cell, cells
from tests.faults.stack import FaultyStack

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


def named(names: Iterable[str]) -> list[Cell]:
    by_name = {str(cell): cell for cell in cells()}
    return [by_name[name] for name in names]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[tuple[FaultyStack, Customers]]:
    """One stack and its customers for the module."""
    async with fresh_stack(SETTINGS) as opened:
        yield opened


@pytest.mark.timeout(300)
async def test_books_hold_after_crashes_in_first_run_and_recovery(
    opened: tuple[FaultyStack, Customers],
) -> None:
    lines: list[str] = []
    matrix = Matrix(lines.append)
    left = await matrix.run_on(*opened, batches(named(CELLS)))
    assert not left, "\n".join(lines)
    assert matrix.results.complete, "\n".join(lines)
    assert len(matrix.results.held) == len(CELLS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["order database", "payment service"])
async def test_sagas_end_after_a_dependency_was_away(
    name: str, opened: tuple[FaultyStack, Customers]
) -> None:
    dependency = next(one for one in DEPENDENCIES if one.name == name)
    outcome = await outage(*opened, dependency, Length("1 s", 1.0, SETTINGS))
    assert outcome.held, outcome
