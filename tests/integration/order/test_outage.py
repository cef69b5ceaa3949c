"""Sagas whose database is away for a moment. A module of its own: its replicas become unready."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.stack import ALL_TAKEN, Stack

OUTAGE_S = 0.5
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    # No other replica takes a saga over while the test runs.
    return {"saga_lease_s": 600.0}


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


async def test_sagas_go_on_after_a_short_outage_of_their_database(stack: Stack) -> None:
    """In the replica that runs them: nobody waits until a lease ends."""
    payments, gates = [], []
    # From the last step to the first: a later payment passes no gate before its own.
    for step in ("confirm_payment", "deduct_balance", "redeem_coupon"):
        _, request = await stack.order_paid_by_all()
        gates.append(stack.wire.hold(step))
        payments.append((request, asyncio.ensure_future(stack.pay(request))))
        await gates[-1].reached()
    with stack.databases.away("order"):
        for gate in gates:
            gate.open()
        await asyncio.sleep(OUTAGE_S)
    for request, paying in payments:
        assert (await paying).order.state == pb.Order.STATE_PAID
        assert await stack.taken(request) == ALL_TAKEN
    epochs = await stack.databases.sql("order", "SELECT epoch FROM sagas")
    assert epochs.split() == ["1"] * 3
