"""The order service's channels to other services: one to each, opened once, in the running loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

from common.rpc.client import ServiceClient
from order_service.clients import Services, StepCall, redeem_coupon
from order_service.saga.plan import PAY_ORDER
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2 as pb
from tally_client.rpc.addresses import target
from tally_client.rpc.channels import open_channel
from tests.support.fake_server import Received, fake_server, refusal
from tests.support.orders import Shop
from tests.support.replicas import channel
from tests.support.sagas import saga_of
from tests.support.stack import Stack, order_replicas
from tests.support.time_limits import LONG_S

PAYMENTS = 6
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


async def test_a_replica_keeps_one_channel_to_each_peer_for_all_its_calls(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    loops: set[asyncio.AbstractEventLoop] = set()
    open_channel = grpc.aio.insecure_channel

    def count(to: str, *args: Any, **options: Any) -> grpc.aio.Channel:
        opened[to] += 1
        loops.add(asyncio.get_running_loop())
        return open_channel(to, *args, **options)

    monkeypatch.setattr(grpc.aio, "insecure_channel", count)
    async with (
        order_replicas(1, stack.databases, stack.peers, stack.redis_url) as [address],
        channel(address) as client,
    ):
        for addresses in stack.peers.values():
            assert opened[target(",".join(addresses))] == 1
        shop, before = Shop.at(client), opened.copy()

        async def pay_by_all() -> int:
            _, request = await stack.order_paid_by_all()
            response = await shop.orders.PayOrder(request, timeout=LONG_S)
            return int(response.order.state)

        states = await asyncio.gather(*(pay_by_all() for _ in range(PAYMENTS)))
        assert set(states) == {pb.Order.STATE_PAID}
        assert len(stack.wire.calls) >= 3 * PAYMENTS
        assert opened == before
    assert loops == {asyncio.get_running_loop()}
    assert set(stack.peers) == {"balance", "coupon", "payment"}


async def test_a_step_is_repeated_while_a_channel_finds_other_replicas() -> None:
    """UNAVAILABLE without a reason: no replica replied. Three attempts end in 0.2 s."""
    received = Received()
    unreached = refusal("UNAVAILABLE", "", retry_after_s=None)
    redeemed = coupon_pb2.RedeemCouponResponse()
    async with (
        fake_server(received, RedeemCoupon=[*[unreached] * 5, redeemed]) as address,
        ServiceClient(open_channel(address), CouponServiceStub) as coupon,
    ):
        services: Any = Services(coupon, balance=None, payment=None)  # type: ignore[arg-type]
        await redeem_coupon(services, StepCall(saga_of(PAY_ORDER), "saga:redeem_coupon", ""))
    assert received.attempts["RedeemCoupon"] == 6
