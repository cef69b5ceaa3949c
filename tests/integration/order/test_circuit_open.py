"""A gateway that is known to be away: payments that need it are refused at once."""

from __future__ import annotations

from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.payments import SHORT_GATEWAY_LIMITS
from tests.support.refusals import refused
from tests.support.stack import NOTHING_TAKEN, Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {
        "payment": {
            **SHORT_GATEWAY_LIMITS,
            "gateway_url": "http://127.0.0.1:1",
            "gateway_breaker_failures": 1,
            "gateway_breaker_pause_s": 120.0,
        }
    }


async def test_an_open_circuit_ends_an_attempt_at_its_first_call(stack: Stack) -> None:
    # The first attempt meets a refused connection, which a second call may not meet.
    for calls in (2, 1, 1):
        order, request = await stack.order_paid_by_all()
        before = stack.wire.calls.count("confirm_payment")
        with refused("GATEWAY_UNAVAILABLE") as raised:
            await stack.pay(request)
        # It is stored: a new attempt needs a new request_id.
        assert raised.refusal.retry_after_s is None
        assert stack.wire.calls.count("confirm_payment") - before == calls
        assert await stack.taken(request) == NOTHING_TAKEN
        assert (await stack.saga(order)).state == pb.Saga.STATE_COMPENSATED
        assert (await stack.shop.get(order)).state == pb.Order.STATE_PENDING
        assert not await stack.payments(order)
