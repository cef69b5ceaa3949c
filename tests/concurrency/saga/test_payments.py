"""Payments against their duplicates, against cancellation and against expiry, over two replicas.

The controls, without the guards of these races, are in ``test_guards``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import cancel, fresh, pay
from tests.support.refusals import Results, outcome
from tests.support.stack import Stack

ORDER = pb.Order
ORDERS = 40
DUPLICATES = 5
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {
        "max_concurrent_calls": 10_000,
        "order_expiry_s": 86_400.0,
        "expiry_interval_s": 0.05,
        "saga_running_max": 1_000,
    }


@pytest.fixture(scope="module")
def redis_url() -> str:
    """PayOrder takes no lock in Redis; its steps do, in races of their own services."""
    return ""


async def many_orders(stack: Stack) -> list[pb.Order]:
    """Orders of users who can each pay twice."""
    return [await stack.order(await stack.user(20_000)) for _ in range(ORDERS)]


async def pay_at_once(
    stack: Stack, groups: Sequence[Sequence[pb.PayOrderRequest]]
) -> list[Results]:
    """The results of each group; all requests are sent at once, in turns over the replicas."""

    async def group(number: int, requests: Sequence[pb.PayOrderRequest]) -> Results:
        calls = [stack.pay(each, (number + rival) % 2) for rival, each in enumerate(requests)]
        return Results.of(await asyncio.gather(*map(outcome, calls)))

    return await asyncio.gather(*(group(*numbered) for numbered in enumerate(groups)))


async def test_one_request_sent_five_times_pays_once(stack: Stack) -> None:
    orders = await many_orders(stack)
    requests = [pay(order, balance=4_000, payment_key=fresh("key")) for order in orders]
    results = await pay_at_once(stack, [[request] * DUPLICATES for request in requests])
    for request, (responses, refusals) in zip(requests, results, strict=True):
        assert not refusals
        assert responses[0].order.state == ORDER.STATE_PAID
        assert all(each.order == responses[0].order for each in responses)
        assert sum(not each.replayed for each in responses) == 1
        assert await stack.available(request.user_id) == 16_000
        assert stack.charged(request.payment_key) == 6_000
    ids = ",".join(f"'{order.order_id}'" for order in orders)
    sagas = await stack.databases.sql(
        "order", f"SELECT count(*) FROM sagas WHERE order_id IN ({ids})"
    )
    assert int(sagas.strip()) == ORDERS


async def test_of_five_requests_for_one_order_one_pays(stack: Stack) -> None:
    orders = await many_orders(stack)
    results = await pay_at_once(
        stack, [[pay(order) for _ in range(DUPLICATES)] for order in orders]
    )
    for order, (responses, refusals) in zip(orders, results, strict=True):
        assert len(responses) == 1
        assert refusals.keys() <= {"PAYMENT_IN_PROGRESS", "ORDER_NOT_PAYABLE"}
        assert await stack.available(order.user_id) == 10_000
        assert await stack.shop.stock(order.items[0].product_id) == (3, 0, 2)


async def test_of_pay_cancel_and_expiry_exactly_one_wins(stack: Stack) -> None:
    orders = await many_orders(stack)

    async def pay_and_cancel(number: int, order: pb.Order) -> tuple[Any, Any]:
        return await asyncio.gather(
            outcome(stack.pay(pay(order), (number + 1) % 2)),
            outcome(stack.cancel(cancel(order, fresh()), number % 2)),
        )

    async def let_expire() -> None:
        """Meanwhile the time of a third of the orders passes; both replicas sweep them."""
        ids = ",".join(f"'{order.order_id}'" for order in orders[::3])
        await stack.databases.sql(
            "order", f"UPDATE orders SET expire_time = now() WHERE order_id IN ({ids})"
        )

    outcomes, _ = await asyncio.gather(
        asyncio.gather(*(pay_and_cancel(*numbered) for numbered in enumerate(orders))),
        let_expire(),
    )
    for order, (paid, cancelled) in zip(orders, outcomes, strict=True):
        now = await stack.until(order, ORDER.STATE_PAID, ORDER.STATE_CANCELLED, ORDER.STATE_EXPIRED)
        left = await stack.available(order.user_id)
        stock = await stack.shop.stock(order.items[0].product_id)
        if now.state == ORDER.STATE_PAID:
            assert not isinstance(paid, str)
            assert isinstance(cancelled, str)
            assert (left, stock) == (10_000, (3, 0, 2))
            continue
        assert (left, stock) == (20_000, (5, 0, 0))
        if now.state == ORDER.STATE_CANCELLED:
            assert not isinstance(cancelled, str)
        else:
            assert isinstance(paid, str)
            assert isinstance(cancelled, str)


async def test_a_hundred_cancellations_give_everything_back_once(stack: Stack) -> None:
    order, request = await stack.order_paid_by_all()
    await stack.pay(request)
    responses = await asyncio.gather(
        *(stack.cancel(cancel(order, fresh()), number % 2) for number in range(100))
    )
    states = {response.order.state for response in responses}
    assert states <= {ORDER.STATE_CANCELLING, ORDER.STATE_CANCELLED}
    await stack.until(order, ORDER.STATE_CANCELLED)
    assert await stack.available(order.user_id) == 20_000
    assert stack.charged(request.payment_key) == 0
    assert await stack.shop.stock(order.items[0].product_id) == (5, 0, 0)
    for step in ("cancel_payment", "refund_deduction", "restore_coupon"):
        assert stack.wire.calls.count(step) == 1


async def test_one_coupon_for_many_orders_is_used_once(stack: Stack) -> None:
    ann = await stack.user(10_000_000)
    coupon_id = await stack.coupon_of(ann)
    orders = [await stack.order(ann) for _ in range(100)]
    (results,) = await pay_at_once(stack, [[pay(order, coupon_id=coupon_id) for order in orders]])
    assert len(results.responses) == 1
    assert results.refusals == {"COUPON_NOT_USABLE": 99}
    assert await stack.available(ann) == 10_000_000 - 9_000
    states = Counter([(await stack.shop.get(order)).state for order in orders])
    assert states == {ORDER.STATE_PAID: 1, ORDER.STATE_PENDING: 99}
