"""A small part of the crash matrix, two of the outages, and some chaos.

All of them: `make test-crash`, `make test-outages`, `make test-chaos`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest
import pytest_asyncio

from tests.chaos.run import SETTINGS, described, run_on
from tests.chaos.stack import ChaosStack
from tests.chaos.stack import opened as chaos_stack
from tests.faults.load import Customers, customers
from tests.faults.matrix import Matrix, batches
from tests.faults.outages import DEPENDENCIES, Length, outage
from tests.faults.places import Cell, cells

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 1
MINUTES = 0.6
Opened = tuple[ChaosStack, Customers]
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
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Opened]:
    """One stack and its customers for the module."""
    data_dir = tmp_path_factory.mktemp("faults") / "data"
    async with chaos_stack(data_dir, SETTINGS) as stack, customers(stack) as crowd:
        yield stack, crowd


@pytest.mark.timeout(300)
async def test_books_hold_after_crashes_in_first_run_and_recovery(opened: Opened) -> None:
    lines: list[str] = []
    matrix = Matrix(lines.append)
    left = await matrix.run_on(*opened, batches(named(CELLS)))
    assert not left, "\n".join(lines)
    assert matrix.results.complete, "\n".join(lines)
    assert len(matrix.results.held) == len(CELLS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["order database", "payment service"])
async def test_sagas_end_after_what_they_need_was_away(opened: Opened, name: str) -> None:
    dependency = next(one for one in DEPENDENCIES if one.name == name)
    outcome = await outage(*opened, dependency, Length("1 s", 1.0, SETTINGS))
    assert outcome.held, outcome


@pytest.mark.timeout(600)
async def test_replies_and_books_agree_after_faults_of_all_kinds(opened: Opened) -> None:
    print(described(SEED, MINUTES))
    result = await run_on(*opened, SEED, MINUTES, print)
    assert result.held, "\n".join(result.lines())
