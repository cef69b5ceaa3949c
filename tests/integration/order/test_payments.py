"""PayOrder and CancelOrder over the real balance, coupon and payment services and a gateway."""

from __future__ import annotations

import asyncio

import pytest

from common import currencies
from common.ids import new_id
from order_service.use_cases import order as use_cases
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2 as pb
from tally.payment.v1 import payment_pb2
from tests.support.balances import available, charge, won
from tests.support.orders import cancel, fresh, pay
from tests.support.refusals import refused
from tests.support.stack import ALL_TAKEN, NOTHING_TAKEN, Stack
from tests.support.time_limits import SOON_S

ORDER, SAGA = pb.Order, pb.Saga
ISSUED, REDEEMED = coupon_pb2.Coupon.STATE_ISSUED, coupon_pb2.Coupon.STATE_REDEEMED
STEPS = ["redeem_coupon", "deduct_balance", "confirm_payment"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- payments that succeed -----------------------------------------------------------------------


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
    coupon_id = await stack.coupon_of(ann) if uses_coupon else None
    key = fresh("key") if uses_gateway else None
    response = await stack.pay(pay(order, coupon_id=coupon_id, balance=balance, payment_key=key))
    due = 9_000 if uses_coupon else 10_000
    by_balance = balance if balance is not None else (0 if uses_gateway else due)
    paid = response.order
    assert (paid.state, response.replayed) == (ORDER.STATE_PAID, False)
    assert (paid.discount.amount_minor, paid.total.amount_minor) == (10_000 - due, due)
    assert paid.paid_by_balance.amount_minor == by_balance
    assert paid.paid_by_gateway.amount_minor == due - by_balance
    assert (paid.coupon_id, paid.failure_reason) == (coupon_id or "", "")
    assert await stack.available(ann) == 20_000 - by_balance
    ids = [payment.payment_id for payment in await stack.payments(order)]
    assert ids == ([paid.payment_id] if paid.payment_id else [])
    assert stack.charged(key or "") == due - by_balance
    assert await stack.shop.stock(order.items[0].product_id) == (3, 0, 2)
    if coupon_id:
        assert await stack.coupon_state(coupon_id, ann) == REDEEMED
    assert await stack.shops[1].get(order) == paid
    saga = await stack.saga(order)
    assert (saga.state, saga.epoch) == (SAGA.STATE_COMPLETED, 1)
    assert {step.state for step in saga.steps} <= {
        pb.SagaStep.STATE_DONE,
        pb.SagaStep.STATE_SKIPPED,
    }


async def test_what_exists_in_a_currency_that_is_withdrawn_is_used_to_the_end(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = fresh("user")
    with monkeypatch.context() as earlier:
        earlier.setattr(currencies, "LISTED", {"ABC"})
        opened = await stack.balance.ChargeBalance(charge(ann, 100, "c1", currency="ABC"))
        product_id = await stack.shop.product(5, price=100, currency="ABC")
        coupon_id = await stack.coupon_of(ann, fixed_discount=won(20, currency="ABC"))
    again = await stack.balance.ChargeBalance(charge(ann, 100, "c1", currency="ABC"))
    assert (again.replayed, again.entry) == (True, opened.entry)
    await stack.balance.ChargeBalance(charge(ann, 100, "c2", currency="ABC"))
    order = await stack.shop.order(ann, {product_id: 1})
    request = pay(order, coupon_id=coupon_id, balance=50, payment_key=fresh("key"))
    request.balance_amount.currency_code = "ABC"
    paid = (await stack.pay(request)).order
    assert (paid.state, paid.total, paid.paid_by_gateway.amount_minor) == (
        ORDER.STATE_PAID,
        won(80, currency="ABC"),
        30,
    )
    assert (await stack.cancel(cancel(order, "x1"))).order.state == ORDER.STATE_CANCELLED
    assert await available(stack.balance, ann, currency="ABC") == 200


@pytest.mark.parametrize(
    ("amount", "calls"), [(0, []), (1_000, ["redeem_coupon"])], ids=["free", "by coupon alone"]
)
async def test_an_order_with_nothing_left_to_pay_is_paid_and_cancelled(
    stack: Stack, amount: int, calls: list[str]
) -> None:
    ann = await stack.user()
    order, coupon_id = await stack.order(ann, amount), await stack.coupon_of(ann)
    paid = (await stack.pay(pay(order, coupon_id=coupon_id))).order
    assert (paid.state, paid.total.amount_minor) == (ORDER.STATE_PAID, 0)
    assert paid.coupon_id == (coupon_id if calls else "")
    assert stack.wire.calls == calls
    assert (await stack.cancel(cancel(order, "x1"))).order.state == ORDER.STATE_CANCELLED


async def test_a_repeated_request_gets_the_first_response(stack: Stack) -> None:
    order = await stack.order(await stack.user(20_000))
    request = pay(order, "p1")
    first = await stack.pay(request)
    calls = list(stack.wire.calls)
    again = await stack.pay(request, replica=1)
    assert (again.replayed, again.order) == (True, first.order)
    assert stack.wire.calls == calls
    with refused("ORDER_NOT_PAYABLE"):
        await stack.pay(pay(order, "p2"))


async def test_nothing_else_changes_an_order_that_is_being_paid(stack: Stack) -> None:
    order = await stack.order(await stack.user(20_000))
    gate = stack.wire.hold("deduct_balance")
    paying = asyncio.ensure_future(stack.pay(pay(order, "p1")))
    await gate.reached()
    for replica in range(2):
        with refused("PAYMENT_IN_PROGRESS"):
            await stack.pay(pay(order), replica)
        with refused("PAYMENT_IN_PROGRESS"):
            await stack.cancel(cancel(order, fresh()), replica)
        with refused("REQUEST_ID_REUSED"):
            await stack.pay(pay(order, "p1", balance=1, payment_key="key"), replica)
        with refused("REQUEST_IN_PROGRESS") as ended:
            await stack.shops[replica].orders.PayOrder(pay(order, "p1"), timeout=SOON_S)
        assert ended.refusal.retry_after_s is not None
    gate.open()
    assert (await paying).order.state == ORDER.STATE_PAID


# -- payments that are refused -------------------------------------------------------------------


async def test_a_refusal_is_stored_and_a_new_attempt_may_succeed(stack: Stack) -> None:
    ann = await stack.user(1_000)
    order = await stack.order(ann)
    for _ in range(2):
        with refused("INSUFFICIENT_FUNDS") as ended:
            await stack.pay(pay(order, "p1"))
        assert ended.refusal.metadata["user_id"] == ann
        assert ended.refusal.quota[0].subject == f"account:{ann}:KRW"
        assert ended.refusal.retry_after_s is None
    assert stack.wire.calls == ["deduct_balance", "deduct_balance:undo"]
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "INSUFFICIENT_FUNDS")
    paid = (await stack.pay(pay(order, "p2", payment_key=fresh("key")))).order
    assert (paid.state, paid.failure_reason) == (ORDER.STATE_PAID, "")


async def test_a_coupon_without_effect_ends_the_attempt_before_anything_moves(
    stack: Stack,
) -> None:
    ann = await stack.user(100)
    order, coupon_id = await stack.order(ann, 50), await stack.coupon_of(ann, percent_discount=1)
    for replica in range(2):
        with refused("COUPON_WITHOUT_EFFECT"):
            await stack.pay(pay(order, "p1", coupon_id=coupon_id), replica)
    assert stack.wire.calls == ["redeem_coupon", "redeem_coupon:undo"]
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "COUPON_WITHOUT_EFFECT")
    assert await stack.coupon_state(coupon_id, ann) == ISSUED
    paid = (await stack.pay(pay(order, "p2"))).order
    assert (paid.state, paid.paid_by_balance.amount_minor) == (ORDER.STATE_PAID, 50)


@pytest.mark.parametrize("prefix", ["decline_", "error_"])
async def test_a_declined_payment_puts_everything_back_before_it_returns(
    stack: Stack, prefix: str
) -> None:
    order, request = await stack.order_paid_by_all(prefix)
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    assert await stack.taken(request) == NOTHING_TAKEN
    now = await stack.shop.get(order)
    assert (now.state, now.failure_reason) == (ORDER.STATE_PENDING, "PAYMENT_DECLINED")
    assert now.discount.amount_minor == now.paid_by_balance.amount_minor == 0
    assert await stack.shop.stock(order.items[0].product_id) == (3, 2, 0)
    assert sorted(stack.wire.undos) == sorted(f"{step}:undo" for step in STEPS)
    assert (await stack.saga(order)).state == SAGA.STATE_COMPENSATED


async def test_an_attempt_that_ends_after_the_orders_time_leaves_it_expired(stack: Stack) -> None:
    """``test_expiry`` has that it does not expire before its attempt ends."""
    order = await stack.order(await stack.user(1_000))
    gate = stack.wire.hold("deduct_balance")
    paying = asyncio.ensure_future(stack.pay(pay(order)))
    await gate.reached()
    await stack.databases.sql(
        "order", f"UPDATE orders SET expire_time = now() WHERE order_id = '{order.order_id}'"
    )
    gate.open()
    with refused("INSUFFICIENT_FUNDS"):
        await paying
    assert (await stack.shop.get(order)).state == ORDER.STATE_EXPIRED
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)


# -- calls that are lost, late or unanswered -----------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "no reply", "late", "NO_THANKS"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_lost_or_late_call_leaves_the_books_right(
    stack: Stack, step: str, fault: str
) -> None:
    order, request = await stack.order_paid_by_all()
    stack.wire.faults[step] = [fault]
    if step == STEPS[-1] and fault != "NO_THANKS":
        # The pivot is called again until its outcome is known.
        assert (await stack.pay(request)).order.state == ORDER.STATE_PAID
        await stack.wire.deliver_late()
        assert await stack.taken(request) == ALL_TAKEN
        return
    with refused("NO_THANKS" if fault == "NO_THANKS" else "GATEWAY_UNAVAILABLE"):
        await stack.pay(request)
    for late in await stack.wire.deliver_late():
        assert late.reason in {"REDEMPTION_CANCELLED", "DEDUCTION_CANCELLED"}
    assert await stack.taken(request) == NOTHING_TAKEN
    assert (await stack.shop.get(order)).state == ORDER.STATE_PENDING
    assert (await stack.saga(order)).state == SAGA.STATE_COMPENSATED


@pytest.mark.parametrize("fault", ["lost", "no reply"])
@pytest.mark.parametrize("step", STEPS)
async def test_an_undo_is_repeated_and_has_one_effect(stack: Stack, step: str, fault: str) -> None:
    _, request = await stack.order_paid_by_all("decline_")
    stack.wire.faults[f"{step}:undo"] = [fault, fault]
    with refused("PAYMENT_DECLINED"):
        await stack.pay(request)
    assert stack.wire.undos.count(f"{step}:undo") == 3
    assert await stack.taken(request) == NOTHING_TAKEN


# -- cancellations -------------------------------------------------------------------------------


async def test_a_paid_order_is_cancelled_and_gives_everything_back_once(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all()
    paid = (await stack.pay(request)).order
    response = await stack.cancel(cancel(order, "x1"))
    cancelled = response.order
    assert (cancelled.state, response.replayed) == (ORDER.STATE_CANCELLED, False)
    assert cancelled.failure_reason == "changed my mind"
    assert cancelled.paid_by_balance == paid.paid_by_balance
    assert await stack.taken(request) == NOTHING_TAKEN
    (payment,) = await stack.payments(order)
    assert payment.state == payment_pb2.Payment.STATE_CANCELLED
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)
    again = await stack.cancel(cancel(order, "x1"), replica=1)
    assert (again.replayed, again.order) == (True, cancelled)
    assert (await stack.cancel(cancel(order, "x2"), replica=1)).order == cancelled
    saga = await stack.saga(order)
    assert (saga.kind, saga.state) == (SAGA.KIND_CANCEL_ORDER, SAGA.STATE_COMPLETED)


async def test_a_cancellation_compensates_the_attempt_that_paid_by_any_clock(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, request = await stack.order_paid_by_all()
    with monkeypatch.context() as clock_ahead:
        # The replica of the first attempt makes ids of a far future.
        clock_ahead.setattr(use_cases, "new_id", lambda: "f" * 8 + new_id()[8:])
        with refused("PAYMENT_DECLINED"):
            await stack.pay(pay(order, payment_key=fresh("decline_")))
    declined = await stack.saga(order)
    await stack.pay(request)
    paid = await stack.saga(order)
    assert paid.state == SAGA.STATE_COMPLETED, "the newest by the database's clock"
    assert paid.saga_id < declined.saga_id
    response = await stack.cancel(cancel(order, "x1"))
    assert response.order.state == ORDER.STATE_CANCELLED
    assert await stack.taken(request) == NOTHING_TAKEN


@pytest.mark.parametrize("fault", ["lost", "no reply", "NO_THANKS"])
@pytest.mark.parametrize("step", ["cancel_payment", "refund_deduction", "restore_coupon"])
async def test_a_cancellation_only_goes_forward(stack: Stack, step: str, fault: str) -> None:
    order, request = await stack.order_paid_by_all()
    await stack.pay(request)
    stack.wire.faults[step] = [fault, fault]
    response = await stack.cancel(cancel(order, "x1"))
    assert response.order.state == ORDER.STATE_CANCELLED
    assert stack.wire.calls.count(step) == 3
    assert await stack.taken(request) == NOTHING_TAKEN
