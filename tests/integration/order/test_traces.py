"""A payment is one trace over four services; a saga that is taken over has a trace of its own."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import structlog
from sqlalchemy.engine import make_url

from common import logs, tracing
from order_service.settings import OrderSettings
from tally.order.v1 import order_pb2 as pb
from tests.support.collector import Collector, Seen, collecting, tracing_to
from tests.support.refusals import refused
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
TOKEN = "bearer-canary-5f1c"
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
    sent = (("traceparent", f"00-{trace}-{CALLER}-01"), ("authorization", f"Bearer {TOKEN}"))
    return stack.shop.orders.PayOrder(request, metadata=sent, timeout=LONG_S)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All lines of all services, as a replica writes them at its most talkative."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        logs.configure(
            service="all", replica="any", level="debug", output="json", also=[tracing.log_ids]
        )
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


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


class Failing(NamedTuple):
    """A payment that fails, and the lines that it leaves."""

    card: str
    faults: dict[str, list[str]]
    reason: str
    events: dict[str, int]


DECLINED = Failing(
    "decline_",
    {"redeem_coupon:undo": ["lost"]},
    "PAYMENT_DECLINED",
    {"gateway_call": 1, "saga_step_failed": 2},
)
AWAY = Failing(
    "key",
    {"deduct_balance": ["lost"] * 8},
    "GATEWAY_UNAVAILABLE",
    {"saga_not_paid": 1, "saga_step_failed": 1, "call": 1},
)


@pytest.mark.parametrize("failing", [DECLINED, AWAY], ids=["card and undo", "service away"])
async def test_each_line_of_a_failing_payment_has_its_trace_and_no_secret(
    stack: Stack, log: io.StringIO, failing: Failing
) -> None:
    order, request = await stack.order_paid_by_all(failing.card)
    stack.wire.faults |= {step: [*faults] for step, faults in failing.faults.items()}
    log.truncate(0)
    with refused(failing.reason):
        await paying(stack, request, "c" * 32)
    lines = [json.loads(line) for line in log.getvalue().lstrip("\0").splitlines()]
    found = Counter(line["event"] for line in lines)
    assert {event: found[event] for event in failing.events} == failing.events
    assert [line for line in lines if line["event"] in failing.events and not trace_of(line)] == []
    # What a sweep continues is a trace of its own: the ids of the saga join the two.
    of_saga = [line for line in lines if line["event"].startswith("saga_")]
    assert {line["order_id"] for line in of_saga} == {order.order_id}
    for secret in (TOKEN, stack.gateway.secret_key, *passwords(stack)):
        assert secret not in log.getvalue()


def trace_of(line: dict[str, Any]) -> str:
    return str(line.get("trace_id", ""))


def passwords(stack: Stack) -> list[str]:
    """Of the services' databases."""
    urls = [url for each in stack.databases.urls.values() for url in (each.owner, each.runtime)]
    found = [make_url(url).password for url in urls]
    return [password for password in found if password]
