"""Sagas that outlive their replica, and what operators do with those that need them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import UNKNOWN_ID, Shop, cancel
from tests.support.refusals import refused
from tests.support.replicas import channel
from tests.support.stack import Stack, fresh, order_replicas, pay
from tests.support.time_limits import LONG_S, SOON_S

ORDER, SAGA, STEP = pb.Order, pb.Saga, pb.SagaStep
STEPS = ["redeem_coupon", "deduct_balance", "confirm_payment"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    # No heartbeat comes between a test and the lease that it lets run out.
    return {"saga_attempts_max": 3, "saga_lease_s": 600.0}


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Sagas know no Redis; those of the services they call are tried with it in test_payments."""
    return ""


@pytest.fixture(autouse=True)
def _quiet_wire(stack: Stack) -> None:
    stack.wire.reset()


async def expire_lease(stack: Stack, order: pb.Order) -> None:
    """As if its replica had been silent for longer than the lease."""
    await stack.databases.sql(
        "order",
        f"UPDATE sagas SET lease_until = now() - interval '1 second' "
        f"WHERE order_id = '{order.order_id}'",
    )


async def everything(stack: Stack, prefix: str = "key") -> tuple[pb.Order, pb.PayOrderRequest]:
    """An order, and a payment of it by coupon, balance and gateway."""
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    request = pay(
        order,
        coupon_id=await stack.coupon_of(ann),
        balance=4_000,
        payment_key=fresh(prefix),
    )
    return order, request


async def assert_paid_once(stack: Stack, order: pb.Order, request: pb.PayOrderRequest) -> None:
    assert await stack.available(order.user_id) == 16_000
    assert stack.charged(request.payment_key) == 5_000
    assert len(await stack.payments(order)) == 1
    assert await stack.shop.stock(order.items[0].product_id) == (3, 0, 2)


async def assert_nothing_taken(stack: Stack, order: pb.Order, request: pb.PayOrderRequest) -> None:
    assert await stack.available(order.user_id) == 20_000
    assert stack.charged(request.payment_key) == 0
    assert await stack.coupon_state(request.coupon_id, order.user_id) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_another_replica_takes_over_and_the_stale_one_writes_nothing(
    stack: Stack, step: str
) -> None:
    order, request = await everything(stack)
    gate = stack.wire.hold(step)
    paying = asyncio.ensure_future(stack.pay(request))
    await stack.wire.arrived(step)
    await expire_lease(stack, order)
    done = await stack.until_saga(order, SAGA.STATE_COMPLETED)
    assert done.epoch == 2
    calls = list(stack.wire.calls)
    gate.set()
    # The caller still waits at the first replica, and hears what the second one did.
    response = await paying
    assert response.order.state == ORDER.STATE_PAID
    await asyncio.sleep(0.2)
    assert stack.wire.calls == calls, "the stale replica began something"
    assert await stack.saga(order) == done
    await assert_paid_once(stack, order, request)


@pytest.mark.parametrize("step", STEPS)
async def test_another_replica_goes_on_undoing(stack: Stack, step: str) -> None:
    order, request = await everything(stack, "decline_")
    gate = stack.wire.hold(f"{step}:undo")
    paying = asyncio.ensure_future(stack.pay(request))
    await stack.wire.arrived(f"{step}:undo")
    await expire_lease(stack, order)
    done = await stack.until_saga(order, SAGA.STATE_COMPENSATED)
    assert done.epoch == 2
    gate.set()
    with refused("PAYMENT_DECLINED"):
        await paying
    await asyncio.sleep(0.2)
    assert await stack.saga(order) == done
    await assert_nothing_taken(stack, order, request)


async def test_a_cancellation_is_taken_over(stack: Stack) -> None:
    order, request = await everything(stack)
    await stack.pay(request)
    gate = stack.wire.hold("refund_deduction")
    cancelling = asyncio.ensure_future(stack.shop.orders.CancelOrder(cancel(order, fresh())))
    await stack.wire.arrived("refund_deduction")
    await expire_lease(stack, order)
    await stack.until(order, ORDER.STATE_CANCELLED)
    gate.set()
    assert (await cancelling).order.state == ORDER.STATE_CANCELLED
    await assert_nothing_taken(stack, order, request)


async def test_a_replica_that_stops_hands_its_sagas_over(stack: Stack) -> None:
    order, request = await everything(stack)
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
        await stack.wire.arrived("deduct_balance")
        gate_opened = asyncio.get_running_loop().call_later(0.3, gate.set)
        paying.cancel()
    gate_opened.cancel()
    # Its lease would have lasted ten minutes.
    await stack.until(order, ORDER.STATE_PAID)
    assert (await stack.saga(order)).epoch == 2
    assert stack.wire.calls.count("deduct_balance") == 1
    await assert_paid_once(stack, order, request)


async def test_time_that_is_up_before_the_pivot_leads_back(stack: Stack) -> None:
    order, request = await everything(stack)
    gate = stack.wire.hold("deduct_balance")
    paying = asyncio.ensure_future(stack.pay(request))
    await stack.wire.arrived("deduct_balance")
    await stack.databases.sql(
        "order", f"UPDATE sagas SET pivot_by = now() WHERE order_id = '{order.order_id}'"
    )
    await expire_lease(stack, order)
    with refused("GATEWAY_UNAVAILABLE"):
        await paying
    gate.set()
    await asyncio.sleep(0.2)
    await assert_nothing_taken(stack, order, request)
    assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING


async def test_a_saga_tells_its_steps(stack: Stack) -> None:
    order, request = await everything(stack, "decline_")
    stack.wire.faults["deduct_balance:undo"] = ["lost"]
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    saga = await stack.saga(order)
    assert (saga.kind, saga.order_id, saga.user_id) == (
        SAGA.KIND_PAY_ORDER,
        order.order_id,
        order.user_id,
    )
    redeem, deduct, confirm, complete = saga.steps
    assert [step.name for step in saga.steps] == [*STEPS, "complete_order"]
    assert {step.state for step in (redeem, deduct, confirm)} == {STEP.STATE_COMPENSATED}
    assert complete.state == STEP.STATE_PENDING
    assert not complete.HasField("begin_time")
    assert (redeem.attempts, deduct.attempts, confirm.attempts) == (2, 3, 2)
    assert confirm.last_error == "FAILED_PRECONDITION PAYMENT_DECLINED"
    times = [step.begin_time.ToNanoseconds() for step in (redeem, deduct, confirm)]
    assert sorted(times) == times
    assert confirm.end_time.ToNanoseconds() <= redeem.end_time.ToNanoseconds()
    assert not saga.HasField("next_attempt_time")
    by_id = await stack.sagas.GetSaga(pb.GetSagaRequest(saga_id=saga.saga_id))
    assert by_id.saga == saga


async def parked(stack: Stack, step: str) -> tuple[pb.Order, pb.PayOrderRequest, pb.Saga]:
    """A saga whose step keeps failing until a person looks."""
    order, request = await everything(stack, "decline_" if step.endswith(":undo") else "key")
    stack.wire.faults[step] = ["lost"] * 3
    paying = asyncio.ensure_future(stack.pay(request))
    await stack.until(order, ORDER.STATE_PAYING)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    paying.cancel()
    return order, request, saga


@pytest.mark.parametrize("step", [f"{step}:undo" for step in STEPS])
async def test_a_saga_that_needs_attention_goes_on_when_told(stack: Stack, step: str) -> None:
    order, request, saga = await parked(stack, step)
    assert saga.last_error == "UNAVAILABLE"
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAYING
    with refused("REQUEST_IN_PROGRESS"):
        await stack.shop.orders.PayOrder(request, timeout=SOON_S)
    retry = pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=fresh())
    told = await stack.sagas.RetrySaga(retry)
    assert told.saga.state == SAGA.STATE_COMPENSATING
    again = await stack.sagas.RetrySaga(retry)
    assert again.replayed
    assert again.saga == told.saga
    await stack.until_saga(order, SAGA.STATE_COMPENSATED)
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    await assert_nothing_taken(stack, order, request)
    with refused("SAGA_NOT_RETRYABLE"):
        await stack.sagas.RetrySaga(pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=fresh()))
    with refused("REQUEST_ID_REUSED"):
        other = (await parked(stack, step))[2]
        await stack.sagas.RetrySaga(
            pb.RetrySagaRequest(saga_id=other.saga_id, request_id=retry.request_id)
        )


async def test_a_pivot_that_stays_unknown_waits_for_a_person(stack: Stack) -> None:
    order, request, saga = await parked(stack, "confirm_payment")
    confirm = saga.steps[2]
    assert (confirm.state, confirm.attempts) == (STEP.STATE_UNKNOWN, 3)
    assert not [call for call in stack.wire.calls if call.endswith(":undo")]
    await stack.sagas.RetrySaga(pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=fresh()))
    await stack.until(order, ORDER.STATE_PAID)
    await assert_paid_once(stack, order, request)


async def test_a_resolved_saga_does_nothing_more_and_frees_its_order(stack: Stack) -> None:
    order, request, saga = await parked(stack, "redeem_coupon:undo")
    resolve = pb.ResolveSagaRequest(
        saga_id=saga.saga_id, reason="gave a new coupon", request_id=fresh()
    )
    told = await stack.sagas.ResolveSaga(resolve)
    assert (told.saga.state, told.saga.resolution_reason) == (
        SAGA.STATE_RESOLVED,
        "gave a new coupon",
    )
    again = await stack.sagas.ResolveSaga(resolve)
    assert again.replayed
    assert again.saga == told.saga
    assert (await stack.saga(order)).resolution_reason == "gave a new coupon"
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "PAYMENT_DECLINED")
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    with refused("SAGA_NOT_RETRYABLE"):
        await stack.sagas.ResolveSaga(
            pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="again", request_id=fresh())
        )
    assert (await stack.pay(pay(order))).order.state == ORDER.STATE_PAID


async def test_an_unknown_pivot_resolved_by_a_person_counts_as_not_paid(stack: Stack) -> None:
    order, request, saga = await parked(stack, "confirm_payment")
    await stack.sagas.ResolveSaga(
        pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="paid back", request_id=fresh())
    )
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "PAYMENT_OUTCOME_UNKNOWN")
    with refused("PAYMENT_OUTCOME_UNKNOWN"):
        await stack.pay(request)


async def test_a_cancellation_resolved_by_a_person_cancels_the_order(stack: Stack) -> None:
    order, request = await everything(stack)
    await stack.pay(request)
    stack.wire.faults["restore_coupon"] = ["lost"] * 3
    await stack.shop.orders.CancelOrder(cancel(order, fresh()), timeout=SOON_S)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    await stack.sagas.ResolveSaga(
        pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="by hand", request_id=fresh())
    )
    assert (await stack.shop.get(order)).state == ORDER.STATE_CANCELLED
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)


async def test_sagas_are_listed_newest_first_by_state_and_in_pages(stack: Stack) -> None:
    orders = [(await everything(stack))[0] for _ in range(5)]
    for order in orders:
        await stack.pay(pay(order))
    seen: list[tuple[str, str]] = []
    token = ""
    while True:
        page = await stack.sagas.ListSagas(
            pb.ListSagasRequest(state=SAGA.STATE_COMPLETED, page_size=2, page_token=token)
        )
        assert len(page.sagas) <= 2
        assert {saga.state for saga in page.sagas} <= {SAGA.STATE_COMPLETED}
        seen += [(saga.saga_id, saga.order_id) for saga in page.sagas]
        token = page.next_page_token
        if not token:
            break
        with refused("INVALID_PAGE_TOKEN"):
            await stack.sagas.ListSagas(pb.ListSagasRequest(page_token=token))
    assert [order_id for _, order_id in seen[:5]] == [order.order_id for order in reversed(orders)]
    assert len(set(seen)) == len(seen)
    everyone = await stack.sagas.ListSagas(pb.ListSagasRequest())
    assert len(everyone.sagas) >= 5


@pytest.mark.parametrize("saga_id", [UNKNOWN_ID, "nonsense", "x" * 5_000])
async def test_sagas_that_are_not_there(stack: Stack, saga_id: str) -> None:
    with refused("SAGA_NOT_FOUND"):
        await stack.sagas.GetSaga(pb.GetSagaRequest(saga_id=saga_id))
    with refused("SAGA_NOT_FOUND"):
        await stack.sagas.GetSaga(pb.GetSagaRequest(order_id=saga_id))
    with refused("SAGA_NOT_FOUND"):
        await stack.sagas.RetrySaga(pb.RetrySagaRequest(saga_id=saga_id, request_id=fresh()))
    with refused("SAGA_NOT_FOUND"):
        await stack.sagas.ResolveSaga(
            pb.ResolveSagaRequest(saga_id=saga_id, reason="none", request_id=fresh())
        )
