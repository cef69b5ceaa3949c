"""Payments against their duplicates, against cancellation and against expiry, over two replicas.

What each of these races does without its guards is shown in ``test_guards``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import cancel
from tests.support.refusals import outcome
from tests.support.stack import Stack, fresh, pay
from tests.support.time_limits import LONG_S

ORDER = pb.Order
ORDERS = 40
DUPLICATES = 5
TURNED_AWAY = {"PAYMENT_IN_PROGRESS", "ORDER_NOT_PAYABLE"}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {
        "max_concurrent_calls": 10_000,
        "order_expiry_s": 86_400.0,
        "expiry_interval_s": 0.05,
        "saga_running_max": 1_000,
    }


@pytest.fixture(autouse=True)
def _quiet_wire(stack: Stack) -> None:
    stack.wire.reset()


def turn(number: int) -> int:
    return number % 2


async def crowd(stack: Stack, count: int = ORDERS) -> list[pb.Order]:
    """Orders of users who can each pay twice."""
    return [await stack.order(await stack.user(20_000)) for _ in range(count)]


async def test_one_request_sent_five_times_pays_once_and_is_answered_five_times(
    stack: Stack,
) -> None:
    orders = await crowd(stack)
    requests = [pay(order, balance=4_000, payment_key=fresh("key")) for order in orders]
    told = await asyncio.gather(
        *(
            stack.pay(request, turn(number + rival))
            for number, request in enumerate(requests)
            for rival in range(DUPLICATES)
        )
    )
    for number, order in enumerate(orders):
        answers = told[number * DUPLICATES : (number + 1) * DUPLICATES]
        assert {answer.order.state for answer in answers} == {ORDER.STATE_PAID}
        assert len({answer.order.SerializeToString() for answer in answers}) == 1
        assert sorted(answer.replayed for answer in answers) == [False] + [True] * 4
        assert await stack.available(order.user_id) == 16_000
    named = ",".join(f"'{order.order_id}'" for order in orders)
    query = f"SELECT count(*) FROM sagas WHERE order_id IN ({named})"
    assert int((await stack.databases.sql("order", query)).strip()) == ORDERS
    charges = stack.gateway.charges()
    for request in requests:
        assert charges[request.payment_key]["payment"]["balanceAmount"] == 6_000


async def test_of_five_requests_for_one_order_one_pays(stack: Stack) -> None:
    orders = await crowd(stack)
    told = await asyncio.gather(
        *(
            outcome(stack.pay(pay(order), turn(number + rival)))
            for number, order in enumerate(orders)
            for rival in range(DUPLICATES)
        )
    )
    for number, order in enumerate(orders):
        answers = told[number * DUPLICATES : (number + 1) * DUPLICATES]
        paid = [answer for answer in answers if not isinstance(answer, str)]
        assert len(paid) == 1
        assert {answer for answer in answers if isinstance(answer, str)} <= TURNED_AWAY
        assert await stack.available(order.user_id) == 10_000
        assert await stack.shop.stock(order.items[0].product_id) == (3, 0, 2)


async def test_of_pay_cancel_and_expiry_exactly_one_wins(stack: Stack) -> None:
    orders = await crowd(stack)

    def rivals(number: int, order: pb.Order) -> list[Any]:
        orders_at = stack.shops[turn(number)].orders
        return [
            outcome(stack.pay(pay(order), turn(number + 1))),
            outcome(orders_at.CancelOrder(cancel(order, fresh()), timeout=LONG_S)),
        ]

    async def overdue() -> None:
        """A third of the orders run out of time in the midst of it; both replicas sweep them."""
        numbers = ",".join(f"'{order.order_id}'" for order in orders[::3])
        await stack.databases.sql(
            "order",
            f"UPDATE orders SET expire_time = now() WHERE order_id IN ({numbers})",
        )

    told = await asyncio.gather(
        *(rival for number, order in enumerate(orders) for rival in rivals(number, order)),
        overdue(),
    )
    states: Counter[int] = Counter()
    for number, order in enumerate(orders):
        paid, cancelled = told[2 * number : 2 * number + 2]
        now = await stack.until(order, ORDER.STATE_PAID, ORDER.STATE_CANCELLED, ORDER.STATE_EXPIRED)
        states[now.state] += 1
        product_id = order.items[0].product_id
        if now.state == ORDER.STATE_PAID:
            assert not isinstance(paid, str)
            assert isinstance(cancelled, str)
            assert await stack.available(order.user_id) == 10_000
            assert await stack.shop.stock(product_id) == (3, 0, 2)
        else:
            assert await stack.available(order.user_id) == 20_000
            assert await stack.shop.stock(product_id) == (5, 0, 0)
        if now.state == ORDER.STATE_CANCELLED:
            assert not isinstance(cancelled, str)
        if now.state == ORDER.STATE_EXPIRED:
            assert isinstance(paid, str)
            assert isinstance(cancelled, str)
    assert sum(states.values()) == ORDERS


async def test_a_hundred_cancellations_give_everything_back_once(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh("key")
    await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))
    told = await asyncio.gather(
        *(
            stack.shops[turn(number)].orders.CancelOrder(cancel(order, fresh()), timeout=LONG_S)
            for number in range(100)
        )
    )
    assert {answer.order.state for answer in told} <= {
        ORDER.STATE_CANCELLING,
        ORDER.STATE_CANCELLED,
    }
    await stack.until(order, ORDER.STATE_CANCELLED)
    assert await stack.available(ann) == 20_000
    assert stack.charged(key) == 0
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)
    for step in ("cancel_payment", "refund_deduction", "restore_coupon"):
        assert stack.wire.calls.count(step) == 1


async def test_one_coupon_for_many_orders_is_used_once(stack: Stack) -> None:
    ann = await stack.user(10_000_000)
    coupon_id = await stack.coupon_of(ann)
    orders = [await stack.order(ann) for _ in range(100)]
    told = await asyncio.gather(
        *(
            outcome(stack.pay(pay(order, coupon_id=coupon_id), turn(number)))
            for number, order in enumerate(orders)
        )
    )
    assert Counter(answer if isinstance(answer, str) else "PAID" for answer in told) == {
        "PAID": 1,
        "COUPON_NOT_USABLE": 99,
    }
    assert await stack.available(ann) == 10_000_000 - 9_000
    states = Counter([(await stack.shop.get(order)).state for order in orders])
    assert states == {ORDER.STATE_PAID: 1, ORDER.STATE_PENDING: 99}
