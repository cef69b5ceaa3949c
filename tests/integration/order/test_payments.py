"""PayOrder and CancelOrder over the real balance, coupon and payment services and a gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.ids import new_id
from order_service.use_cases import payments
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2 as pb
from tally.payment.v1 import payment_pb2
from tests.support.orders import UNKNOWN_ID, cancel
from tests.support.refusals import refused
from tests.support.stack import Stack, fresh, pay
from tests.support.time_limits import LONG_S, SOON_S

ORDER = pb.Order
SAGA = pb.Saga
ISSUED, REDEEMED = coupon_pb2.Coupon.STATE_ISSUED, coupon_pb2.Coupon.STATE_REDEEMED
pytestmark = pytest.mark.asyncio(loop_scope="module")
STEPS = ["redeem_coupon", "deduct_balance", "confirm_payment"]


@pytest.fixture(autouse=True)
def _quiet_wire(stack: Stack) -> None:
    stack.wire.reset()


@pytest.mark.parametrize(
    ("uses_coupon", "balance", "uses_gateway"),
    [
        (True, 4_000, True),
        (True, 9_000, False),
        (True, None, False),
        (True, None, True),
        (True, 0, True),
        (False, 4_000, True),
        (False, None, False),
        (False, 10_000, True),
        (False, None, True),
    ],
)
async def test_an_order_is_paid_in_every_way(
    stack: Stack, uses_coupon: bool, balance: int | None, uses_gateway: bool
) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    fields: dict[str, Any] = {}
    if uses_coupon:
        fields["coupon_id"] = await stack.coupon_of(ann)
    if uses_gateway:
        fields["payment_key"] = fresh("key")
    response = await stack.pay(pay(order, balance=balance, **fields))
    paid = response.order
    due = 9_000 if uses_coupon else 10_000
    by_balance = balance if balance is not None else (0 if uses_gateway else due)
    assert not response.replayed
    assert paid.state == ORDER.STATE_PAID
    assert paid.discount.amount_minor == 10_000 - due
    assert paid.total.amount_minor == due
    assert paid.paid_by_balance.amount_minor == by_balance
    assert paid.paid_by_gateway.amount_minor == due - by_balance
    assert paid.coupon_id == fields.get("coupon_id", "")
    assert paid.failure_reason == ""
    assert await stack.available(ann) == 20_000 - by_balance
    made = await stack.payments(order)
    assert [payment.payment_id for payment in made] == (
        [paid.payment_id] if paid.payment_id else []
    )
    assert stack.charged(fields.get("payment_key", "")) == due - by_balance
    assert await stack.shop.stock(order.items[0].product_id) == (3, 0, 2)
    if uses_coupon:
        assert await stack.coupon_state(fields["coupon_id"], ann) == REDEEMED
    assert await stack.shops[1].get(order) == paid
    saga = await stack.saga(order)
    assert (saga.state, saga.epoch) == (SAGA.STATE_COMPLETED, 1)
    assert all(step.state in {3, 7} for step in saga.steps)


async def test_an_order_of_nothing_is_paid_at_once(stack: Stack) -> None:
    ann = await stack.user()
    order = await stack.order(ann, 0)
    response = await stack.pay(pay(order, coupon_id=await stack.coupon_of(ann)))
    assert response.order.state == ORDER.STATE_PAID
    assert response.order.coupon_id == ""
    assert stack.wire.calls == []


async def test_a_coupon_may_pay_it_all(stack: Stack) -> None:
    ann = await stack.user()
    order = await stack.order(ann, 1_000)
    response = await stack.pay(pay(order, coupon_id=await stack.coupon_of(ann)))
    assert response.order.state == ORDER.STATE_PAID
    assert response.order.total.amount_minor == 0
    assert stack.wire.calls == ["redeem_coupon"]


async def test_the_same_request_is_answered_again(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order, other = await stack.order(ann), await stack.order(ann)
    request = pay(order, "p1")
    first = await stack.pay(request)
    calls = list(stack.wire.calls)
    again = await stack.pay(request, replica=1)
    assert again.replayed
    assert again.order == first.order
    assert stack.wire.calls == calls
    with refused("REQUEST_ID_REUSED"):
        await stack.pay(pay(other, "p1"))
    with refused("REQUEST_ID_REUSED"):
        await stack.pay(pay(order, "p1", balance=1, payment_key="key"))
    with refused("ORDER_NOT_PAYABLE"):
        await stack.pay(pay(order, "p2"))


async def test_a_refused_attempt_is_told_again_and_a_new_one_may_succeed(stack: Stack) -> None:
    ann = await stack.user(1_000)
    order = await stack.order(ann)
    for _ in range(2):
        with refused("INSUFFICIENT_FUNDS") as told:
            await stack.pay(pay(order, "p1"))
        assert told.refusal is not None
        assert told.refusal.metadata["user_id"] == ann
        assert told.refusal.quota[0].subject == f"account:{ann}:KRW"
        assert told.refusal.retry_after_s is None
    assert stack.wire.calls == ["deduct_balance", "deduct_balance:undo"]
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "INSUFFICIENT_FUNDS")
    response = await stack.pay(pay(order, "p2", payment_key=fresh("key")))
    assert response.order.state == ORDER.STATE_PAID
    assert response.order.failure_reason == ""


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"balance": 10_001}, "AMOUNT_EXCEEDS_DUE"),
        ({"balance": 10_001, "payment_key": "key"}, "AMOUNT_EXCEEDS_DUE"),
        ({"balance": 9_999}, "PAYMENT_KEY_REQUIRED"),
        ({"balance": 0}, "PAYMENT_KEY_REQUIRED"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_begun(
    stack: Stack, fields: dict[str, Any], reason: str
) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    with refused(reason):
        await stack.pay(pay(order, "p1", **fields))
    dollars = pay(order, "p1")
    dollars.balance_amount.currency_code = "USD"
    dollars.balance_amount.amount_minor = 1
    with refused("CURRENCY_MISMATCH"):
        await stack.pay(dollars)
    assert stack.wire.calls == []
    assert await stack.shop.get(order) == order
    with refused("SAGA_NOT_FOUND"):
        await stack.saga(order)
    # Nothing was begun, so nothing is kept: the same id may try again.
    assert (await stack.pay(pay(order, "p1"))).order.state == ORDER.STATE_PAID


async def test_orders_that_are_not_there_or_somebody_elses(stack: Stack) -> None:
    order = await stack.order(await stack.user())
    for order_id, user_id in (
        (UNKNOWN_ID, order.user_id),
        ("nonsense", order.user_id),
        (order.order_id, "eve"),
    ):
        with refused("ORDER_NOT_FOUND"):
            await stack.pay(pay(ORDER(order_id=order_id, user_id=user_id)))


@pytest.mark.parametrize(
    ("balance", "key", "reason"),
    [(9_500, "key", "AMOUNT_EXCEEDS_DUE"), (8_999, None, "PAYMENT_KEY_REQUIRED")],
)
async def test_what_the_discount_makes_impossible_is_refused_when_the_coupon_is_back(
    stack: Stack, balance: int, key: str | None, reason: str
) -> None:
    ann = await stack.user(20_000)
    order, coupon_id = await stack.order(ann), await stack.coupon_of(ann)
    with refused(reason):
        await stack.pay(pay(order, balance=balance, coupon_id=coupon_id, payment_key=key))
    assert await stack.coupon_state(coupon_id, ann) == ISSUED
    now = await stack.shop.get(order)
    assert (now.state, now.coupon_id, now.failure_reason) == (ORDER.STATE_PENDING, "", reason)
    assert now.total.amount_minor == 10_000


async def test_refusals_of_the_coupon_are_passed_on(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    with refused("COUPON_NOT_FOUND"):
        await stack.pay(pay(order, coupon_id=UNKNOWN_ID))
    used = await stack.coupon_of(ann)
    await stack.pay(pay(await stack.order(ann), coupon_id=used))
    with refused("COUPON_NOT_USABLE"):
        await stack.pay(pay(order, coupon_id=used))
    assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING
    assert (await stack.pay(pay(order))).order.state == ORDER.STATE_PAID


async def test_a_declined_payment_puts_everything_back_before_it_is_told(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("decline_")
    with refused("PAYMENT_DECLINED"):
        await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))
    assert await stack.available(ann) == 20_000
    assert await stack.coupon_state(coupon_id, ann) == ISSUED
    assert stack.charged(key) == 0
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "PAYMENT_DECLINED")
    assert now.discount.amount_minor == now.paid_by_balance.amount_minor == 0
    assert await stack.shop.stock(order.items[0].product_id) == (3, 2, 0)
    undos = [call for call in stack.wire.calls if call.endswith(":undo")]
    assert undos == [f"{step}:undo" for step in reversed(STEPS)]
    assert (await stack.saga(order)).state == SAGA.STATE_COMPENSATED


async def test_an_error_that_never_charged_comes_to_its_end(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order, key = await stack.order(ann), fresh("error_")
    with refused("PAYMENT_DECLINED"):
        await stack.pay(pay(order, balance=4_000, payment_key=key))
    assert stack.charged(key) == 0
    assert await stack.available(ann) == 20_000


@pytest.mark.parametrize("fault", ["lost", "no reply", "late", "NO_THANKS"])
@pytest.mark.parametrize("step", STEPS)
async def test_whatever_happens_to_a_call_everything_adds_up(
    stack: Stack, step: str, fault: str
) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("key")
    stack.wire.faults[step] = [fault]
    request = pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key)
    if step == STEPS[-1] and fault != "NO_THANKS":
        # The pivot: asked again until it is known.
        assert (await stack.pay(request)).order.state == ORDER.STATE_PAID
        await stack.wire.deliver_late()
        assert (await stack.available(ann), stack.charged(key)) == (16_000, 5_000)
        assert await stack.coupon_state(coupon_id, ann) == REDEEMED
        return
    with refused("NO_THANKS" if fault == "NO_THANKS" else "GATEWAY_UNAVAILABLE"):
        await stack.pay(request)
    for late in await stack.wire.deliver_late():
        assert late.reason in {"REDEMPTION_CANCELLED", "DEDUCTION_CANCELLED"}
    assert (await stack.available(ann), stack.charged(key)) == (20_000, 0)
    assert await stack.coupon_state(coupon_id, ann) == ISSUED
    assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING
    assert (await stack.saga(order)).state == SAGA.STATE_COMPENSATED


@pytest.mark.parametrize("fault", ["lost", "no reply"])
@pytest.mark.parametrize("step", STEPS)
async def test_an_undo_is_repeated_and_has_one_effect(stack: Stack, step: str, fault: str) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("decline_")
    stack.wire.faults[f"{step}:undo"] = [fault, fault]
    with refused("PAYMENT_DECLINED"):
        await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))
    assert stack.wire.calls.count(f"{step}:undo") == 3
    assert await stack.available(ann) == 20_000
    assert await stack.coupon_state(coupon_id, ann) == ISSUED


async def test_an_attempt_that_ends_after_the_orders_time_leaves_it_expired(stack: Stack) -> None:
    ann = await stack.user(1_000)
    order = await stack.order(ann)
    gate = stack.wire.hold("deduct_balance")
    paying = asyncio.ensure_future(stack.pay(pay(order)))
    await stack.wire.arrived("deduct_balance")
    await stack.databases.sql(
        "order", f"UPDATE orders SET expire_time = now() WHERE order_id = '{order.order_id}'"
    )
    await asyncio.sleep(0.3)
    assert (await stack.shop.get(order)).state == ORDER.STATE_PAYING, "PAYING never expires"
    gate.set()
    with refused("INSUFFICIENT_FUNDS"):
        await paying
    assert (await stack.shop.get(order)).state == ORDER.STATE_EXPIRED
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)


async def test_while_it_is_paying_nothing_else_comes_between(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    gate = stack.wire.hold("deduct_balance")
    paying = asyncio.ensure_future(stack.pay(pay(order, "p1")))
    await stack.wire.arrived("deduct_balance")
    for replica in range(2):
        with refused("PAYMENT_IN_PROGRESS"):
            await stack.pay(pay(order), replica)
        with refused("PAYMENT_IN_PROGRESS"):
            await stack.shops[replica].orders.CancelOrder(cancel(order, fresh()))
        with refused("REQUEST_ID_REUSED"):
            await stack.pay(pay(order, "p1", balance=1, payment_key="key"), replica)
        with refused("REQUEST_IN_PROGRESS") as told:
            await stack.shops[replica].orders.PayOrder(pay(order, "p1"), timeout=SOON_S)
        assert told.refusal is not None
        assert told.refusal.retry_after_s is not None
    joined = asyncio.ensure_future(stack.pay(pay(order, "p1"), 1))
    await asyncio.sleep(0.05)
    gate.set()
    first, second = await asyncio.gather(paying, joined)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.order == second.order
    assert first.order.state == ORDER.STATE_PAID


async def test_the_attempt_goes_on_when_its_caller_has_gone(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    gate = stack.wire.hold("deduct_balance")
    paying = asyncio.ensure_future(stack.pay(pay(order, "p1")))
    await stack.wire.arrived("deduct_balance")
    paying.cancel()
    await asyncio.sleep(0.05)
    gate.set()
    await stack.until(order, ORDER.STATE_PAID)
    assert (await stack.pay(pay(order, "p1"))).replayed


async def test_a_paid_order_is_cancelled_and_gives_everything_back_once(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("key")
    paid = (await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))).order
    response = await stack.shop.orders.CancelOrder(cancel(order, "x1"))
    gone = response.order
    assert (gone.state, response.replayed) == (ORDER.STATE_CANCELLED, False)
    assert gone.failure_reason == "changed my mind"
    assert gone.paid_by_balance == paid.paid_by_balance
    assert await stack.available(ann) == 20_000
    assert await stack.coupon_state(coupon_id, ann) == ISSUED
    assert stack.charged(key) == 0
    (payment,) = await stack.payments(order)
    assert payment.state == payment_pb2.Payment.STATE_CANCELLED
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)
    again = await stack.shops[1].orders.CancelOrder(cancel(order, "x1"))
    assert again.replayed
    assert again.order == gone
    other = await stack.shops[1].orders.CancelOrder(cancel(order, "x2"))
    assert other.order == gone
    saga = await stack.saga(order)
    assert (saga.kind, saga.state) == (SAGA.KIND_CANCEL_ORDER, SAGA.STATE_COMPLETED)


async def test_a_cancellation_takes_back_the_attempt_that_paid_whatever_the_clocks_say(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("key")
    with monkeypatch.context() as ahead:
        # The replica of the first attempt is far ahead of its time.
        ahead.setattr(payments, "new_id", lambda: "f" * 8 + new_id()[8:])
        with refused("PAYMENT_DECLINED"):
            await stack.pay(pay(order, payment_key=fresh("decline_")))
    declined = await stack.saga(order)
    await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))
    paid = await stack.saga(order)
    assert paid.state == SAGA.STATE_COMPLETED, "the latest by the database's clock"
    assert paid.saga_id < declined.saga_id
    response = await stack.shop.orders.CancelOrder(cancel(order, "x1"), timeout=LONG_S)
    assert response.order.state == ORDER.STATE_CANCELLED
    assert (await stack.available(ann), stack.charged(key)) == (20_000, 0)
    assert await stack.coupon_state(coupon_id, ann) == ISSUED


@pytest.mark.parametrize("fault", ["lost", "no reply", "NO_THANKS"])
@pytest.mark.parametrize("step", ["cancel_payment", "refund_deduction", "restore_coupon"])
async def test_a_cancellation_only_goes_forward(stack: Stack, step: str, fault: str) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("key")
    await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))
    stack.wire.faults[step] = [fault, fault]
    response = await stack.shop.orders.CancelOrder(cancel(order, "x1"), timeout=LONG_S)
    assert response.order.state == ORDER.STATE_CANCELLED
    assert stack.wire.calls.count(step) == 3
    assert (await stack.available(ann), stack.charged(key)) == (20_000, 0)
    assert await stack.coupon_state(coupon_id, ann) == ISSUED


async def test_a_cancellation_is_told_as_it_stands_when_the_time_is_up(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    await stack.pay(pay(order))
    gate = stack.wire.hold("refund_deduction")
    slow = await stack.shop.orders.CancelOrder(cancel(order, "x1"), timeout=SOON_S)
    assert slow.order.state == ORDER.STATE_CANCELLING
    other = await stack.shops[1].orders.CancelOrder(cancel(order, "x2"))
    assert other.order.state == ORDER.STATE_CANCELLING
    again = asyncio.ensure_future(stack.shops[1].orders.CancelOrder(cancel(order, "x1")))
    await asyncio.sleep(0.05)
    gate.set()
    told = await again
    assert (told.order.state, told.replayed) == (ORDER.STATE_CANCELLED, True)
    assert await stack.available(ann) == 20_000


async def test_an_order_that_cost_nothing_is_cancelled_too(stack: Stack) -> None:
    order = await stack.order(await stack.user(), 0)
    await stack.pay(pay(order))
    response = await stack.shop.orders.CancelOrder(cancel(order, "x1"))
    assert response.order.state == ORDER.STATE_CANCELLED
    assert stack.wire.calls == []
