"""The order service's channels to the others: one to each, made once, in the running loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

from common.addresses import target
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop
from tests.support.replicas import channel
from tests.support.stack import Stack, fresh, order_replicas, pay
from tests.support.time_limits import LONG_S

ORDERS = 6
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


async def test_a_replica_keeps_one_channel_to_each_peer_however_many_calls_it_makes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    loops: set[asyncio.AbstractEventLoop] = set()
    really = grpc.aio.insecure_channel

    def counted(to: str, *args: Any, **options: Any) -> grpc.aio.Channel:
        opened[to] += 1
        loops.add(asyncio.get_running_loop())
        return really(to, *args, **options)

    def called(peer: str) -> int:
        return opened[target(",".join(stack.peers[peer]))]

    monkeypatch.setattr(grpc.aio, "insecure_channel", counted)
    stack.wire.reset()
    async with (
        order_replicas(1, stack.databases, stack.peers, stack.redis_url) as [address],
        channel(address) as client,
    ):
        assert {peer: called(peer) for peer in stack.peers} == dict.fromkeys(stack.peers, 1)
        shop, everything = Shop.at(client), opened.copy()

        async def paid() -> int:
            ann = await stack.user(20_000)
            order, coupon_id = await stack.order(ann), await stack.coupon_of(ann)
            request = pay(order, coupon_id=coupon_id, balance=4_000, payment_key=fresh("key"))
            answer = await shop.orders.PayOrder(request, timeout=LONG_S)
            return int(answer.order.state)

        states = await asyncio.gather(*(paid() for _ in range(ORDERS)))
        assert set(states) == {pb.Order.STATE_PAID}
        assert len(stack.wire.calls) >= 3 * ORDERS
        assert opened == everything
    assert loops == {asyncio.get_running_loop()}
    assert set(stack.peers) == {"balance", "coupon", "payment"}
