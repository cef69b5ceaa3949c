"""Sagas that outlive their replica, and what operators do with those that need attention."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, fresh, pay
from tests.support.pages import pages_of
from tests.support.refusals import refused
from tests.support.replicas import channel
from tests.support.stack import ALL_TAKEN, NOTHING_TAKEN, Stack, order_replicas
from tests.support.time_limits import LONG_S, SOON_S

ORDER, SAGA, STEP = pb.Order, pb.Saga, pb.SagaStep
STEPS = ["redeem_coupon", "deduct_balance", "confirm_payment"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    # No heartbeat comes between a test and the lease that it lets expire.
    return {"saga_attempts_max": 3, "saga_lease_s": 600.0}


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Sagas use no Redis; the services that they call are tested with it in test_payments."""
    return ""


# -- takeovers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("undo", [False, True], ids=["do", "undo"])
@pytest.mark.parametrize("step", STEPS)
async def test_another_replica_takes_over_and_the_stale_one_stops(
    stack: Stack, step: str, undo: bool
) -> None:
    order, request = await stack.order_paid_by_all("decline_" if undo else "key")
    gate = stack.wire.hold(f"{step}:undo" if undo else step)
    paying = asyncio.ensure_future(stack.pay(request))
    await gate.reached()
    await stack.expire_lease(order)
    done = await stack.until_saga(order, SAGA.STATE_COMPENSATED if undo else SAGA.STATE_COMPLETED)
    assert done.epoch == 2
    calls = list(stack.wire.calls)
    gate.open()
    # The caller still waits at the first replica, and gets what the second one did.
    if undo:
        with refused("PAYMENT_DECLINED"):
            await paying
    else:
        assert (await paying).order.state == ORDER.STATE_PAID
    await asyncio.sleep(0.2)
    assert stack.wire.calls == calls, "the stale replica made a call"
    assert await stack.saga(order) == done
    assert await stack.taken(request) == (NOTHING_TAKEN if undo else ALL_TAKEN)
    stock = await stack.shop.stock(order.items[0].product_id)
    assert stock == ((3, 2, 0) if undo else (3, 0, 2))


async def test_a_cancellation_is_taken_over(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all()
    await stack.pay(request)
    gate = stack.wire.hold("refund_deduction")
    cancelling = asyncio.ensure_future(stack.cancel(cancel(order, fresh())))
    await gate.reached()
    await stack.expire_lease(order)
    await stack.until(order, ORDER.STATE_CANCELLED)
    gate.open()
    assert (await cancelling).order.state == ORDER.STATE_CANCELLED
    assert await stack.taken(request) == NOTHING_TAKEN


async def test_a_replica_that_stops_hands_its_sagas_over(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all()
    gate = stack.wire.hold("deduct_balance")
    async with (
        order_replicas(
            2,
            stack.databases,
            stack.peers,
            stack.redis_url,
            saga_lease_s=600.0,
            grace_s=LONG_S,
        ) as addresses,
        channel(addresses[0]) as opened,
    ):
        paying = asyncio.ensure_future(Shop.at(opened).orders.PayOrder(request, timeout=LONG_S))
        await gate.reached()
        opening = asyncio.get_running_loop().call_later(0.3, gate.open)
        paying.cancel()
    opening.cancel()
    # Its lease would have lasted ten minutes.
    await stack.until(order, ORDER.STATE_PAID)
    assert (await stack.saga(order)).epoch == 2
    assert stack.wire.calls.count("deduct_balance") == 1
    assert await stack.taken(request) == ALL_TAKEN


# -- operators -----------------------------------------------------------------------------------


async def test_a_saga_is_returned_with_its_steps(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all("decline_")
    stack.wire.faults["deduct_balance:undo"] = ["lost"]
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    saga = await stack.saga(order)
    ids = (saga.kind, saga.order_id, saga.user_id)
    assert ids == (SAGA.KIND_PAY_ORDER, order.order_id, order.user_id)
    redeem, deduct, confirm, complete = saga.steps
    assert [step.name for step in saga.steps] == [*STEPS, "complete_order"]
    assert {step.state for step in (redeem, deduct, confirm)} == {STEP.STATE_COMPENSATED}
    assert complete.state == STEP.STATE_PENDING
    assert not complete.HasField("begin_time")
    assert (redeem.attempts, deduct.attempts, confirm.attempts) == (2, 3, 2)
    assert confirm.last_error == "FAILED_PRECONDITION PAYMENT_DECLINED"
    times = [
        saga.create_time,
        *(step.begin_time for step in (redeem, deduct, confirm)),
        confirm.end_time,
        redeem.end_time,
    ]
    nanoseconds = [time.ToNanoseconds() for time in times]
    assert nanoseconds == sorted(nanoseconds)
    assert not saga.HasField("next_attempt_time")
    by_id = await stack.sagas.GetSaga(pb.GetSagaRequest(saga_id=saga.saga_id))
    assert by_id.saga == saga


def retry(saga: pb.Saga, request_id: str = "") -> pb.RetrySagaRequest:
    return pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=request_id or fresh())


def resolve(saga: pb.Saga, reason: str) -> pb.ResolveSagaRequest:
    return pb.ResolveSagaRequest(saga_id=saga.saga_id, reason=reason, request_id=fresh())


@pytest.mark.parametrize("step", [f"{step}:undo" for step in STEPS])
async def test_a_retried_saga_continues(stack: Stack, step: str) -> None:
    order, request, saga = await stack.parked(step)
    assert saga.last_error == "UNAVAILABLE"
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAYING
    with refused("REQUEST_IN_PROGRESS"):
        await stack.shop.orders.PayOrder(request, timeout=SOON_S)
    retrying = retry(saga)
    retried = await stack.sagas.RetrySaga(retrying)
    assert retried.saga.state == SAGA.STATE_COMPENSATING
    again = await stack.sagas.RetrySaga(retrying)
    assert (again.replayed, again.saga) == (True, retried.saga)
    await stack.until_saga(order, SAGA.STATE_COMPENSATED)
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    assert await stack.taken(request) == NOTHING_TAKEN
    with refused("SAGA_NOT_RETRYABLE"):
        await stack.sagas.RetrySaga(retry(saga))
    _, _, other = await stack.parked(step)
    with refused("REQUEST_ID_REUSED"):
        await stack.sagas.RetrySaga(retry(other, retrying.request_id))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("redeem_coupon:undo", "PAYMENT_DECLINED"),
        ("confirm_payment", "PAYMENT_OUTCOME_UNKNOWN"),
    ],
)
async def test_a_resolved_saga_frees_its_order_as_not_paid(
    stack: Stack, step: str, reason: str
) -> None:
    order, request, saga = await stack.parked(step)
    resolving = resolve(saga, "gave everything back")
    resolved = await stack.sagas.ResolveSaga(resolving)
    assert resolved.saga.state == SAGA.STATE_RESOLVED
    assert resolved.saga.resolution_reason == "gave everything back"
    again = await stack.sagas.ResolveSaga(resolving)
    assert (again.replayed, again.saga) == (True, resolved.saga)
    assert (await stack.saga(order)).resolution_reason == "gave everything back"
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, reason)
    with refused(reason):
        await stack.pay(request)
    with refused("SAGA_NOT_RETRYABLE"):
        await stack.sagas.ResolveSaga(resolve(saga, "again"))
    assert (await stack.pay(pay(order))).order.state == ORDER.STATE_PAID


async def test_a_resolved_cancellation_cancels_the_order(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all()
    await stack.pay(request)
    stack.wire.faults["restore_coupon"] = ["lost"] * 3
    await stack.shop.orders.CancelOrder(cancel(order, fresh()), timeout=SOON_S)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    await stack.sagas.ResolveSaga(resolve(saga, "by hand"))
    assert (await stack.shop.get(order)).state == ORDER.STATE_CANCELLED
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)


async def test_sagas_are_listed_newest_first_by_state_and_in_pages(stack: Stack) -> None:
    orders = [await stack.order(await stack.user(10_000)) for _ in range(5)]
    for order in orders:
        await stack.pay(pay(order))
    request = pb.ListSagasRequest(state=SAGA.STATE_COMPLETED, page_size=2)
    pages = await pages_of(stack.sagas.ListSagas, request)
    sagas = [saga for page in pages for saga in page]
    assert {saga.state for saga in sagas} == {SAGA.STATE_COMPLETED}
    assert {len(page) for page in pages[:-1]} == {2}
    assert [saga.order_id for saga in sagas[:5]] == [order.order_id for order in reversed(orders)]
    assert len({saga.saga_id for saga in sagas}) == len(sagas)
    assert len((await stack.sagas.ListSagas(pb.ListSagasRequest())).sagas) >= 5
