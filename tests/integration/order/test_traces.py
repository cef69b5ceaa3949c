"""A payment is one trace over four services; a saga that is taken over has a trace of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from order_service.settings import OrderSettings
from tally.order.v1 import order_pb2 as pb
from tests.support.collector import Collector, Seen, collecting, tracing_to
from tests.support.stack import Stack
from tests.support.time_limits import LONG_S

ORDER, SAGA = pb.Order, pb.Saga
PAY = "tally.order.v1.OrderService/PayOrder"
STEPS = [
    "tally.coupon.v1.CouponService/RedeemCoupon",
    "tally.balance.v1.BalanceService/DeductBalance",
    "tally.payment.v1.PaymentService/ConfirmPayment",
]
CALLER = "b7ad6b7169203331"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector, tracing_to(collector.url, OrderSettings(replica="any")):
        yield collector


@pytest.fixture(scope="module")
def stack_options(collector: Collector) -> dict[str, Any]:
    """Needs the collector: tracing has to be set up before the services are built."""
    # No heartbeat comes between a test and the lease that it lets expire.
    return {"saga_lease_s": 600.0}


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


def paying(stack: Stack, request: pb.PayOrderRequest, trace: str) -> Any:
    parent = (("traceparent", f"00-{trace}-{CALLER}-01"),)
    return stack.shop.orders.PayOrder(request, metadata=parent, timeout=LONG_S)


def of_trace(collector: Collector, trace: str) -> list[Seen]:
    return [span for span in collector.spans if span.trace_id == trace]


async def test_paying_is_one_trace_over_four_services(stack: Stack, collector: Collector) -> None:
    order, request = await stack.order_paid_by_all()
    trace = "a" * 32
    assert (await paying(stack, request, trace)).order.state == ORDER.STATE_PAID
    await collector.until(lambda seen: len(of_trace(seen, trace)) == 7)
    spans = of_trace(collector, trace)
    [root] = [span for span in spans if span.name == PAY]
    assert (root.kind, root.parent) == ("SERVER", CALLER)
    for step in STEPS:
        [client] = [span for span in spans if (span.name, span.kind) == (step, "CLIENT")]
        [server] = [span for span in spans if (span.name, span.kind) == (step, "SERVER")]
        assert (client.parent, server.parent) == (root.span_id, client.span_id)
        assert server.attributes["rpc.response.status_code"] == "OK"
    sent = collector.everything()
    for id_ in (order.order_id, order.user_id, request.coupon_id, request.payment_key):
        assert id_ not in sent


async def test_a_saga_that_is_taken_over_is_one_trace_of_its_own(
    stack: Stack, collector: Collector
) -> None:
    order, request = await stack.order_paid_by_all()
    trace = "b" * 32
    gate = stack.wire.hold("redeem_coupon")
    waiting = asyncio.ensure_future(paying(stack, request, trace))
    await gate.reached()
    await stack.expire_lease(order)
    await stack.until_saga(order, SAGA.STATE_COMPLETED)
    gate.open()
    assert (await waiting).order.state == ORDER.STATE_PAID
    # The caller's own replica made the call that it had begun, and then found the saga lost.
    await collector.until(lambda seen: [span for span in of_trace(seen, trace) if span.name == PAY])
    await collector.until(lambda seen: seen.named("tally.order.saga_taken_up", "INTERNAL"))
    [root] = collector.named("tally.order.saga_taken_up", "INTERNAL")
    await collector.until(lambda seen: len(of_trace(seen, root.trace_id)) == 7)
    assert (root.parent, root.trace_id == trace) == ("", False)
    spans = of_trace(collector, root.trace_id)
    assert {span.name for span in spans} == {root.name, *STEPS}
