"""Sagas that outlive their replica, and what operators do with those that need attention."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from common.metrics import REGISTRY
from tally.order.v1 import order_pb2 as pb
from tally.payment.v1 import payment_pb2
from tally.type.v1.money_pb2 import Money
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
    return {"saga_attention_s": 0.001, "saga_lease_s": 600.0}


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Sagas use no Redis; the services that they call are tested with it in test_payments."""
    return ""


# -- takeovers -----------------------------------------------------------------------------------


def takeovers() -> Counter[str]:
    """How many there have been, by cause."""
    name = "tally_saga_takeovers_total"
    return Counter(
        {
            cause: int(REGISTRY.get_sample_value(name, {"cause": cause}) or 0)
            for cause in ("expired", "due")
        }
    )


@pytest.mark.parametrize("undo", [False, True], ids=["do", "undo"])
@pytest.mark.parametrize("step", STEPS)
async def test_another_replica_takes_over_and_the_stale_one_stops(
    stack: Stack, step: str, undo: bool
) -> None:
    order, request = await stack.order_paid_by_all("decline_" if undo else "key")
    gate = stack.wire.hold(f"{step}:undo" if undo else step)
    before = takeovers()
    paying = asyncio.ensure_future(stack.pay(request))
    await gate.reached()
    await stack.expire_lease(order)
    done = await stack.until_saga(order, SAGA.STATE_COMPENSATED if undo else SAGA.STATE_COMPLETED)
    assert done.epoch == 2
    assert takeovers() - before == {"expired": 1}
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


async def test_a_saga_that_comes_back_from_its_pause_is_no_expired_one(stack: Stack) -> None:
    _, request = await stack.order_paid_by_all("decline_")
    stack.wire.faults["redeem_coupon:undo"] = ["lost"]
    before = takeovers()
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    assert takeovers() - before == {"due": 1}


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
    begins = [saga.create_time, *(step.begin_time for step in (redeem, deduct, confirm))]
    nanoseconds = [time.ToNanoseconds() for time in begins]
    assert nanoseconds == sorted(nanoseconds)
    for step in (redeem, deduct, confirm):
        assert step.end_time.ToNanoseconds() > nanoseconds[-1], "undone after the refusal"
    assert not saga.HasField("next_attempt_time")
    by_id = await stack.sagas.GetSaga(pb.GetSagaRequest(saga_id=saga.saga_id))
    assert by_id.saga == saga


def retry(saga: pb.Saga, request_id: str = "") -> pb.RetrySagaRequest:
    return pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=request_id or fresh())


def resolve(saga: pb.Saga, reason: str, *standing: pb.StandingEffect) -> pb.ResolveSagaRequest:
    return pb.ResolveSagaRequest(
        saga_id=saga.saga_id, reason=reason, request_id=fresh(), standing=standing
    )


# Without that of the payment: the poll wakes it, since the payment is decided.
@pytest.mark.parametrize("step", ["redeem_coupon:undo", "deduct_balance:undo"])
async def test_a_retried_saga_continues_at_once(stack: Stack, step: str) -> None:
    order, request, saga = await stack.parked(step)
    assert saga.last_error == "UNAVAILABLE"
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAYING
    with refused("REQUEST_IN_PROGRESS"):
        await stack.shop.orders.PayOrder(request, timeout=SOON_S)
    retrying = retry(saga)
    retried = await stack.sagas.RetrySaga(retrying)
    assert retried.saga.state == SAGA.STATE_NEEDS_ATTENTION
    assert retried.saga.next_attempt_time.ToNanoseconds() < saga.next_attempt_time.ToNanoseconds()
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


async def test_sagas_are_retried_by_state_kind_reason_and_age(stack: Stack) -> None:
    order, _, _ = await stack.parked("deduct_balance:undo")
    hour = Duration(seconds=3_600)
    others: list[dict[str, Any]] = [
        {"state": SAGA.STATE_RESOLVING},
        {"kind": SAGA.KIND_CANCEL_ORDER},
        {"last_reason": "PAYMENT_DECLINED"},
        {"age": hour},
    ]
    for filters in others:
        request = pb.RetrySagasRequest(**filters, request_id=fresh())
        assert (await stack.sagas.RetrySagas(request)).count == 0
    assert (await stack.saga(order)).state == SAGA.STATE_NEEDS_ATTENTION
    request = pb.RetrySagasRequest(
        state=SAGA.STATE_NEEDS_ATTENTION,
        kind=SAGA.KIND_PAY_ORDER,
        last_reason="UNAVAILABLE",
        age=Duration(nanos=1),
        request_id=fresh(),
    )
    retried = await stack.sagas.RetrySagas(request)
    assert retried.count >= 1, "those that other tests left wait too"
    assert not retried.replayed
    await stack.until_saga(order, SAGA.STATE_COMPENSATED)
    again = await stack.sagas.RetrySagas(request)
    assert (again.count, again.replayed) == (retried.count, True)
    request.last_reason = "OTHER"
    with refused("REQUEST_ID_REUSED"):
        await stack.sagas.RetrySagas(request)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("redeem_coupon:undo", "PAYMENT_DECLINED"),
        ("confirm_payment", "PAYMENT_OUTCOME_UNKNOWN"),
    ],
)
async def test_a_resolved_saga_gives_back_and_frees_its_order(
    stack: Stack, step: str, reason: str
) -> None:
    order, request, saga = await stack.parked(step)
    resolving = resolve(saga, "nothing was charged")
    resolved = await stack.sagas.ResolveSaga(resolving)
    assert resolved.saga.state == SAGA.STATE_COMPENSATING
    assert resolved.saga.epoch == saga.epoch + 1
    assert resolved.saga.resolution_reason == "nothing was charged"
    again = await stack.sagas.ResolveSaga(resolving)
    assert (again.replayed, again.saga) == (True, resolved.saga)
    done = await stack.until_saga(order, SAGA.STATE_RESOLVED)
    assert {each.state for each in done.steps[:3]} <= {STEP.STATE_COMPENSATED, STEP.STATE_PENDING}
    assert await stack.taken(request) == NOTHING_TAKEN
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, reason)
    with refused(reason):
        await stack.pay(request)
    with refused("SAGA_NOT_RETRYABLE"):
        await stack.sagas.ResolveSaga(resolve(saga, "again"))
    # The coupon is free again, and so is the order.
    key = fresh("key")
    paying = pay(order, coupon_id=request.coupon_id, balance=4_000, payment_key=key)
    assert (await stack.pay(paying)).order.state == ORDER.STATE_PAID
    assert await stack.taken(paying) == ALL_TAKEN


@pytest.mark.parametrize("step", ["redeem_coupon:undo", "deduct_balance:undo"])
async def test_a_resolved_saga_keeps_its_order_while_a_service_is_away(
    stack: Stack, step: str
) -> None:
    order, request, saga = await stack.parked(step)
    stack.wire.faults[step] = ["lost"] * 1_000
    undone = pb.StandingEffect(step=step.removesuffix(":undo"), reason="perhaps not undone")
    with refused("INVALID_FIELD", field="standing"):
        await stack.sagas.ResolveSaga(resolve(saga, "by hand", undone))
    await stack.sagas.ResolveSaga(resolve(saga, "by hand"))
    await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAYING
    with refused("SAGA_NOT_RETRYABLE"):
        await stack.sagas.ResolveSaga(resolve(saga, "again"))
    del stack.wire.faults[step]
    await stack.until(order, ORDER.STATE_PENDING)
    await stack.until_saga(order, SAGA.STATE_RESOLVED)
    assert await stack.taken(request) == NOTHING_TAKEN


async def test_an_effect_that_has_landed_may_stand(stack: Stack) -> None:
    order, request, saga = await stack.parked("confirm_payment")
    keeps = pb.StandingEffect(step="deduct_balance", reason="paid at the counter")
    unknown = pb.StandingEffect(step="confirm_payment", reason="perhaps charged")
    for wrong in (unknown, pb.StandingEffect(step="complete_order", reason="x")):
        with refused("INVALID_FIELD", field="standing"):
            await stack.sagas.ResolveSaga(resolve(saga, "by hand", keeps, wrong))
    assert await stack.saga(order) == saga
    await stack.sagas.ResolveSaga(resolve(saga, "by hand", keeps))
    done = await stack.until_saga(order, SAGA.STATE_RESOLVED)
    standing = next(step for step in done.steps if step.name == "deduct_balance")
    assert standing.state == STEP.STATE_STANDING
    assert (standing.standing_minor, standing.standing_reason) == (4_000, "paid at the counter")
    assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING
    assert await stack.taken(request) == (16_000, 0, NOTHING_TAKEN[2])


async def test_a_resolved_cancellation_gives_back_and_cancels_the_order(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all()
    await stack.pay(request)
    stack.wire.faults["restore_coupon"] = ["lost"] * 1_000
    await stack.shop.orders.CancelOrder(cancel(order, fresh()), timeout=SOON_S)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    # What does not depend on the coupon is given back.
    assert (await stack.taken(request))[:2] == NOTHING_TAKEN[:2]
    await stack.sagas.ResolveSaga(resolve(saga, "by hand"))
    assert (await stack.shop.get(order)).state == ORDER.STATE_CANCELLING
    del stack.wire.faults["restore_coupon"]
    await stack.until(order, ORDER.STATE_CANCELLED)
    await stack.until_saga(order, SAGA.STATE_RESOLVED)
    assert await stack.taken(request) == NOTHING_TAKEN
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)


async def test_a_decided_payment_wakes_its_saga(stack: Stack) -> None:
    """The saga would ask in an hour; the payment service knows already."""
    order, request = await stack.order_paid_by_all()
    stack.wire.faults["confirm_payment"] = ["lost"] * 1_000
    paying = asyncio.ensure_future(stack.pay(request))
    await stack.until(order, ORDER.STATE_PAYING)
    await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    await stack.postpone(order)
    del stack.wire.faults["confirm_payment"]
    (confirm,) = [s for s in (await stack.saga(order)).steps if s.name == "confirm_payment"]
    await stack.payment.ConfirmPayment(
        payment_pb2.ConfirmPaymentRequest(
            order_id=order.order_id,
            user_id=order.user_id,
            amount=Money(currency_code="KRW", amount_minor=5_000),
            payment_key=request.payment_key,
            request_id=confirm.request_id,
        )
    )
    assert (await paying).order.state == ORDER.STATE_PAID
    assert await stack.taken(request) == ALL_TAKEN


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


async def test_an_operator_lists_the_sagas_of_a_user(stack: Stack) -> None:
    """Those of all kinds, newest first, in pages and in a state."""
    user, other = await stack.user(100_000), await stack.user(10_000)
    orders = [await stack.order(user) for _ in range(3)]
    for order in (*orders, await stack.order(other)):
        await stack.pay(pay(order))
    await stack.cancel(cancel(orders[0], fresh("cancel")))
    of_user = pb.ListSagasRequest(user_id=user, page_size=2)
    pages = await pages_of(stack.sagas.ListSagas, of_user)
    assert [len(page) for page in pages] == [2, 2]
    sagas = [saga for page in pages for saga in page]
    assert [saga.order_id for saga in sagas] == [
        each.order_id for each in (orders[0], *reversed(orders))
    ]
    assert sagas[0].kind == pb.Saga.KIND_CANCEL_ORDER
    for state, count in ((SAGA.STATE_COMPLETED, 4), (SAGA.STATE_RUNNING, 0)):
        in_state = pb.ListSagasRequest(user_id=user, state=state)
        assert len((await stack.sagas.ListSagas(in_state)).sagas) == count
    assert not (await stack.sagas.ListSagas(pb.ListSagasRequest(user_id="nobody"))).sagas
