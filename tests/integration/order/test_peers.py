"""The order service's channels to other services, one to each; and calls that look like its own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import grpc
import pytest

from common.ids import new_id
from common.rpc.client import ServiceClient
from deploy.audit.audit import Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.report import as_json
from deploy.audit.table import as_text
from order_service.clients import Services, StepCall, redeem_coupon
from order_service.saga.plan import PAY_ORDER
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2 as pb
from tally_client.rpc.addresses import target
from tally_client.rpc.channels import open_channel
from tests.support.balances import batch, deduct
from tests.support.coupons import redeem
from tests.support.fake_server import Received, fake_server, refusal
from tests.support.orders import Shop
from tests.support.payments import confirm, key_of
from tests.support.replicas import channel
from tests.support.sagas import saga_of
from tests.support.stack import Stack, order_replicas, sources_of
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


async def test_effects_under_request_ids_that_look_like_a_sagas_are_foreign(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The books balance, whoever sent them. The control is the effects of a saga."""
    monkeypatch.setattr("deploy.audit.audit.PAUSE_S", 0.0)
    user, id_, other = await stack.user(1_000), new_id(), new_id()
    coupon_id = await stack.coupon_of(user)
    confirmed = confirm(key_of(), f"{id_}:confirm_payment", user_id=user, amount_minor=15_000)
    await stack.balance.DeductBalance(deduct(user, 5, f"{id_}:deduct_balance"))
    await stack.balance.BatchWrite(batch(deduct(user, 7, f"{other}:deduct_balance")))
    await stack.coupon.RedeemCoupon(redeem(coupon_id, user, f"{id_}:redeem_coupon"))
    await stack.payment.ConfirmPayment(confirmed)
    _, request = await stack.order_paid_by_all()
    await stack.pay(request)

    report = await audit(sources_of(stack), Limits())
    assert report.holds, as_text(report, details=True)
    assert {*report.notes[Note.FOREIGN]} == {
        f"deduction of KRW 5 of {user}, request_id {id_}:deduct_balance",
        f"deduction of KRW 7 of {user}, request_id {other}:deduct_balance",
        f"payment of KRW 15,000 of {user}, request_id {id_}:confirm_payment",
        f"redemption of KRW 1,000 of {user}, request_id {id_}:redeem_coupon",
    }
    assert "KRW 12 foreign" in as_text(report, details=True)
    assert "4 foreign (" in as_text(report)
    assert len(json.loads(as_json(report))["notes"]["foreign"]) == 4
    assert report.passes == 2, "a saga that began between two snapshots looks the same once"
