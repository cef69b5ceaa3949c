"""Payments whose outcome the gateway does not return: called again, and never guessed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tally.payment.v1 import payment_pb2
from tally.type.v1.money_pb2 import Money
from tests.support.orders import cancel, fresh, pay
from tests.support.payments import SHORT_GATEWAY_LIMITS, until
from tests.support.refusals import outcome, refused
from tests.support.stack import NOTHING_TAKEN, Stack

ORDER, SAGA, STEP = pb.Order, pb.Saga, pb.SagaStep
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {
        "payment": {**SHORT_GATEWAY_LIMITS, "confirm_window_s": 4.0},
        "saga_attention_s": 0.001,
    }


@pytest.mark.parametrize("prefix", ["error_after_charge_", "timeout_after_charge_", "slow_"])
async def test_an_unknown_outcome_is_looked_up(stack: Stack, prefix: str) -> None:
    order, request = await stack.order_paid_by_all(prefix)
    response = await stack.pay(request)
    assert response.order.state == pb.Order.STATE_PAID
    assert stack.charged(request.payment_key) == 5_000
    assert await stack.available(order.user_id) == 16_000
    assert not stack.wire.undos


async def test_what_a_person_closed_as_not_charged_is_never_charged(stack: Stack) -> None:
    """The gateway answers 500 and nothing arrives; a later confirm might be charged."""
    order, request = await stack.order_paid_by_all("error_")
    paying = asyncio.ensure_future(outcome(stack.pay(request)))
    await stack.until(order, ORDER.STATE_PAYING)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    await stack.sagas.ResolveSaga(
        pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="nothing was charged", request_id="r1")
    )
    assert await paying == "PAYMENT_OUTCOME_UNKNOWN"
    assert (await stack.saga(order)).state in {SAGA.STATE_RESOLVING, SAGA.STATE_RESOLVED}
    calls = stack.gateway.charges()[request.payment_key]["confirmCalls"]
    # The order is free, and so is the coupon; the key is spent.
    again = pay(order, coupon_id=request.coupon_id, balance=4_000, payment_key=fresh("key"))
    assert (await stack.pay(again)).order.state == ORDER.STATE_PAID
    request_of_saga = pb.GetSagaRequest(saga_id=saga.saga_id)
    await until(
        lambda: stack.sagas.GetSaga(request_of_saga),
        lambda got: got.saga.state == SAGA.STATE_RESOLVED,
    )
    assert stack.gateway.charges()[request.payment_key]["confirmCalls"] == calls
    assert stack.charged(request.payment_key) == 0
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAID
    states = {payment.payment_key: payment for payment in await stack.payments(order)}
    assert states[request.payment_key].state == payment_pb2.Payment.STATE_DECLINED


async def test_a_charge_found_after_the_saga_was_closed_is_given_back(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all("timeout_after_charge_")
    stack.wire.faults["confirm_payment"] = ["no reply"] * 1_000
    paying = asyncio.ensure_future(outcome(stack.pay(request)))
    await stack.until(order, ORDER.STATE_PAYING)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
    await stack.sagas.ResolveSaga(
        pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="not charged", request_id="r2")
    )
    assert await paying == "PAYMENT_OUTCOME_UNKNOWN"
    await stack.until_saga(order, SAGA.STATE_RESOLVED)
    (payment,) = await stack.payments(order)
    assert payment.state == payment_pb2.Payment.STATE_CANCELLED
    assert payment.refunded == payment.amount
    assert await stack.taken(request) == NOTHING_TAKEN
    assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING


@pytest.mark.parametrize("cancelled", [False, True], ids=["attempt", "cancellation"])
async def test_a_refused_refund_is_reported_and_settled_by_a_person(
    stack: Stack, cancelled: bool
) -> None:
    order, request = await stack.order_paid_by_all("no_refund_")
    if cancelled:
        assert (await stack.pay(request)).order.state == ORDER.STATE_PAID
        ending = asyncio.ensure_future(stack.cancel(cancel(order, fresh())))
    else:
        # Charged, and then the attempt is closed.
        stack.wire.faults["confirm_payment"] = ["no reply"] * 1_000
        ending = asyncio.ensure_future(outcome(stack.pay(request)))
        await stack.until(order, ORDER.STATE_PAYING)
        saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)
        await stack.sagas.ResolveSaga(
            pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="x", request_id=fresh())
        )
        assert await ending == "PAYMENT_OUTCOME_UNKNOWN"

    def has_refusal(saga: pb.Saga) -> bool:
        errors = [step.last_error for step in saga.steps]
        return "FAILED_PRECONDITION REFUND_REFUSED NOT_CANCELABLE_PAYMENT" in errors

    saga = await until(lambda: stack.saga(order), has_refusal)
    # Everything else is given back.
    left, charged, coupon = await stack.taken(request)
    assert (left, coupon) == (NOTHING_TAKEN[0], NOTHING_TAKEN[2])
    assert charged == 5_000
    (payment,) = await stack.payments(order)
    assert payment.state == payment_pb2.Payment.STATE_CONFIRMED
    assert payment.refund_refusal_code == "NOT_CANCELABLE_PAYMENT"
    if cancelled:
        assert saga.state == SAGA.STATE_NEEDS_ATTENTION
        now = await until(
            lambda: stack.shop.get(order),
            lambda now: now.failure_reason == "REFUND_REFUSED NOT_CANCELABLE_PAYMENT",
        )
        assert now.state == ORDER.STATE_CANCELLING
    else:
        assert saga.state == SAGA.STATE_RESOLVING
        assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING
    await stack.payment.ResolvePayment(
        payment_pb2.ResolvePaymentRequest(
            payment_id=payment.payment_id,
            outcome=payment_pb2.ResolvePaymentRequest.OUTCOME_REFUNDED_OUTSIDE,
            amount=payment.amount,
            reason="bank transfer",
            request_id=fresh(),
        )
    )
    if cancelled:
        assert (await ending).order.state == ORDER.STATE_CANCELLED
    ended = SAGA.STATE_COMPLETED if cancelled else SAGA.STATE_RESOLVED
    await stack.until_saga(order, ended)


async def test_a_payment_that_cannot_be_refunded_may_stand(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all("no_refund_")
    await stack.pay(request)
    cancelling = asyncio.ensure_future(stack.cancel(cancel(order, fresh())))
    await stack.until(order, ORDER.STATE_CANCELLING)
    saga = await stack.until_saga(order, SAGA.STATE_NEEDS_ATTENTION)

    def closing(amount_minor: int) -> pb.ResolveSagaRequest:
        amount = Money(currency_code="KRW", amount_minor=amount_minor)
        stands = pb.StandingEffect(step="cancel_payment", amount=amount, reason="voucher given")
        return pb.ResolveSagaRequest(
            saga_id=saga.saga_id, reason="x", request_id=fresh(), standing=[stands]
        )

    with refused("INVALID_FIELD", field="standing"):
        await stack.sagas.ResolveSaga(closing(4_999))
    await stack.sagas.ResolveSaga(closing(5_000))
    assert (await cancelling).order.state == ORDER.STATE_CANCELLED
    ended = await stack.until_saga(order, SAGA.STATE_RESOLVED)
    (standing,) = [step for step in ended.steps if step.state == STEP.STATE_STANDING]
    assert (standing.name, standing.standing_minor) == ("cancel_payment", 5_000)
    assert stack.charged(request.payment_key) == 5_000


async def test_a_virtual_account_is_closed_and_the_order_is_free_again(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all("deposit_")
    with refused("PAYMENT_METHOD_NOT_SUPPORTED") as ended:
        await stack.pay(request)
    assert "WAITING_FOR_DEPOSIT" in ended.refusal.metadata.values()
    assert await stack.taken(request) == NOTHING_TAKEN
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "PAYMENT_METHOD_NOT_SUPPORTED")
    with refused("PAYMENT_METHOD_NOT_SUPPORTED"):
        await stack.pay(request)
