"""A payment whose outcome the gateway does not tell: the saga asks on, and guesses nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.payments import SHORT_GATEWAY_LIMITS
from tests.support.stack import Stack, fresh, pay

ORDER = pb.Order
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {"payment": SHORT_GATEWAY_LIMITS}


@pytest.fixture(autouse=True)
def _quiet_wire(stack: Stack) -> None:
    stack.wire.reset()


@pytest.mark.parametrize("prefix", ["error_after_charge_", "timeout_after_charge_", "slow_"])
async def test_an_unknown_outcome_is_found_out_and_not_guessed(stack: Stack, prefix: str) -> None:
    ann = await stack.user(20_000)
    order, coupon_id, key = await stack.order(ann), await stack.coupon_of(ann), fresh(prefix)
    response = await stack.pay(pay(order, balance=4_000, coupon_id=coupon_id, payment_key=key))
    assert response.order.state == ORDER.STATE_PAID
    assert stack.charged(key) == 5_000
    assert await stack.available(ann) == 16_000
    assert not [call for call in stack.wire.calls if call.endswith(":undo")]
