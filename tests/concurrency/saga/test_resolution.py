"""A saga that a person closes while a replica, which does not know it, is about to charge."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from common.db.writes import Write
from order_service.model.saga import Saga
from order_service.model.saga_command import WriteSaga
from order_service.saga.journal import SagaJournal
from order_service.store import journal as journal_store
from order_service.store.journal import TakenOver
from order_service.use_cases.order_batch import OrderBatch
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import fresh, pay
from tests.support.refusals import outcome
from tests.support.stack import NOTHING_TAKEN, Stack

ORDER, SAGA = pb.Order, pb.Saga
PIVOT = "confirm_payment"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    # No other replica takes the saga over before a person closes it.
    return {"saga_attention_s": 0.001, "saga_lease_s": 600.0}


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Sagas use no Redis."""
    return ""


def keep_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve sagas without raising their epoch."""
    write = OrderBatch.write_saga

    def write_in_epoch(batch: OrderBatch, saga: Saga) -> None:
        saga.epoch = batch.owners[saga.saga_id].epoch
        write(batch, saga)

    monkeypatch.setattr(OrderBatch, "write_saga", write_in_epoch)


def count_no_saga_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move an order also if its saga has a newer snapshot and is not written."""
    writing = journal_store.writing

    def uncounted(writes: Collection[WriteSaga]) -> list[Write]:
        return [replace(one, rows=None) for one in writing(writes)]

    monkeypatch.setattr(journal_store, "writing", uncounted)


async def take_over_nothing(*_journal: Any, **_limits: Any) -> TakenOver:
    return TakenOver([], None)


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "control"])
async def test_a_replica_about_to_charge_changes_nothing_after_the_resolution(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, fenced: bool
) -> None:
    """The control raises no epoch and counts no rows: the order is paid although it was closed."""
    if not fenced:
        keep_the_epoch(monkeypatch)
        count_no_saga_rows(monkeypatch)
    order, request = await stack.order_paid_by_all()
    stack.wire.faults[PIVOT] = ["lost"] * 2
    paying = asyncio.ensure_future(outcome(stack.pay(request)))
    await stack.until(order, ORDER.STATE_PAYING)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    stack.wire.faults[PIVOT].clear()
    gate = stack.wire.hold(PIVOT)
    await gate.reached()
    if not fenced:
        # Nor does a replica take it over, which raises the epoch as well.
        monkeypatch.setattr(SagaJournal, "take_over", take_over_nothing)
    await stack.sagas.ResolveSaga(
        pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="closed", request_id=fresh())
    )
    if not fenced:
        gate.open()
        await stack.until(order, ORDER.STATE_PAID)
        paying.cancel()
        return
    ended = await stack.until_saga(order, SAGA.STATE_RESOLVED)
    assert await paying == "PAYMENT_OUTCOME_UNKNOWN"
    calls = len(stack.wire.calls)
    gate.open()
    again = pay(order, coupon_id=request.coupon_id, balance=4_000, payment_key=fresh("key"))
    assert (await stack.pay(again)).order.state == ORDER.STATE_PAID
    assert stack.charged(request.payment_key) == 0
    closed = (await stack.sagas.GetSaga(pb.GetSagaRequest(saga_id=saga.saga_id))).saga
    assert closed == ended
    assert PIVOT in stack.wire.calls[calls:]
    assert NOTHING_TAKEN[1] == 0
