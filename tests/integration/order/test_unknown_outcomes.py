"""Payments whose outcome the gateway does not return: called again, and never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.payments import SHORT_GATEWAY_LIMITS
from tests.support.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {"payment": SHORT_GATEWAY_LIMITS}


@pytest.mark.parametrize("prefix", ["error_after_charge_", "timeout_after_charge_", "slow_"])
async def test_an_unknown_outcome_is_looked_up(stack: Stack, prefix: str) -> None:
    order, request = await stack.order_paid_by_all(prefix)
    response = await stack.pay(request)
    assert response.order.state == pb.Order.STATE_PAID
    assert stack.charged(request.payment_key) == 5_000
    assert await stack.available(order.user_id) == 16_000
    assert not stack.wire.undos
