"""Which calls are retried, by the channel with the published config and by the client above it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from common.errors import Refusal
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.order.v1.order_pb2_grpc import CartServiceStub
from tally_client import (
    CartChanged,
    DatabaseUnavailable,
    NoAnswer,
    Overloaded,
    Tally,
    TallyError,
    policy,
)
from tally_client.rpc.channels import open_channel
from tests.integration.client.messages import DEDUCTED, ITEM_SET, LIMIT_S, call, deduct, set_item
from tests.support.fake_server import HANG, Received, TcpProxy, fake_server, fake_tally, refusal

UNAVAILABLE = refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE")
BUSY = refusal("RESOURCE_EXHAUSTED", "OVERLOADED")


@asynccontextmanager
async def channel(address: str, **changes: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with the published service config, and nothing of the client above it."""
    opened = open_channel(address, config={**copy.deepcopy(policy.CHANNEL), **changes})
    try:
        yield opened
    finally:
        await opened.close()


def call_on(opened: grpc.aio.Channel, name: str) -> Any:
    """A call of DeductBalance, which is idempotent, or of SetCartItem, which is not."""
    if name == "DeductBalance":
        return BalanceServiceStub(opened).DeductBalance(deduct("r1"), timeout=LIMIT_S)
    return CartServiceStub(opened).SetCartItem(set_item(), timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("name", "outcomes", "attempts", "code"),
    [
        ("DeductBalance", [UNAVAILABLE] * 3 + [DEDUCTED], 4, None),
        ("DeductBalance", [UNAVAILABLE], 5, "UNAVAILABLE"),
        ("SetCartItem", [UNAVAILABLE, ITEM_SET], 1, "UNAVAILABLE"),
        ("DeductBalance", [refusal("ABORTED", "SOME_REASON"), DEDUCTED], 1, "ABORTED"),
        ("DeductBalance", [BUSY, DEDUCTED], 1, "RESOURCE_EXHAUSTED"),
        ("DeductBalance", [refusal("INTERNAL", "SOME_REASON"), DEDUCTED], 1, "INTERNAL"),
        # Without RetryInfo the server forbids a retry.
        (
            *("DeductBalance", [refusal("UNAVAILABLE", "NO", retry_after_s=None), DEDUCTED]),
            *(1, "UNAVAILABLE"),
        ),
    ],
)
async def test_channel_retries_only_unavailable_of_idempotent_methods(
    name: str, outcomes: Sequence[Any], attempts: int, code: str | None
) -> None:
    received = Received()
    async with fake_server(received, **{name: outcomes}) as address, channel(address) as opened:
        if code is None:
            assert await call_on(opened, name) == outcomes[-1]
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_on(opened, name)
            assert caught.value.code().name == code
    assert received.attempts[name] == attempts
    assert len({request.SerializeToString() for request in received.requests[name]}) == 1


async def test_channel_retries_a_lost_answer_only_of_idempotent_methods() -> None:
    received = Received()
    async with (
        fake_server(received, DeductBalance=[HANG, DEDUCTED], SetCartItem=[HANG]) as address,
        TcpProxy.to(address) as proxy,
        channel(proxy.address) as opened,
    ):

        async def cut_after(calling: Any) -> Any:
            await asyncio.wait_for(received.arrived.wait(), LIMIT_S)
            proxy.cut()
            return await calling

        assert await cut_after(call_on(opened, "DeductBalance")) == DEDUCTED
        received.arrived.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cut_after(call_on(opened, "SetCartItem"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert received.attempts == {"DeductBalance": 2, "SetCartItem": 1}


async def test_channel_stops_retrying_when_throttled() -> None:
    received = Received()
    throttling = {"maxTokens": 4, "tokenRatio": 0.1}
    attempts = []
    async with (
        fake_server(received, DeductBalance=[UNAVAILABLE]) as address,
        channel(address, retryThrottling=throttling) as opened,
    ):
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await call_on(opened, "DeductBalance")
            attempts.append(received.attempts["DeductBalance"])
    # Four tokens, one for each failure; with no more than half of them left there are no retries.
    assert attempts == [2, 3, 4]


async def test_client_does_not_retry_what_the_channel_retried() -> None:
    async with fake_tally(DeductBalance=[UNAVAILABLE]) as (tally, received):
        with pytest.raises(DatabaseUnavailable) as caught:
            await tally.balance.deduct_balance(deduct(), timeout_s=LIMIT_S)
    assert received.attempts["DeductBalance"] == 5
    assert caught.value.may_repeat


async def test_client_retries_refusals_with_retry_info_of_any_method() -> None:
    reported: list[TallyError] = []
    outcomes = [BUSY, BUSY, ITEM_SET]
    async with fake_tally(on_repeat=reported.append, SetCartItem=outcomes) as (tally, received):
        await tally.cart.set_cart_item(set_item(), timeout_s=LIMIT_S)
    assert received.attempts["SetCartItem"] == 3
    assert [type(error) for error in reported] == [Overloaded] * 2


@pytest.mark.parametrize(
    ("outcome", "kind", "may_repeat"),
    [
        (refusal("ABORTED", "CART_CHANGED", retry_after_s=None), CartChanged, False),
        # The wait would outlast the deadline.
        (refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=3600.0), Overloaded, True),
    ],
)
async def test_client_raises_a_refusal_that_it_does_not_retry(
    outcome: Refusal, kind: type[TallyError], may_repeat: bool
) -> None:
    async with fake_tally(SetCartItem=[outcome, ITEM_SET]) as (tally, received):
        with pytest.raises(kind) as caught:
            await tally.cart.set_cart_item(set_item())
    assert received.attempts["SetCartItem"] == 1
    assert caught.value.retry_after_s == outcome.retry_after_s
    assert caught.value.may_repeat is may_repeat


class StoppingServer(grpc.GenericRpcHandler):
    """Ends calls with a bare CANCELLED, as a server that stops; after ``resets`` calls, answers."""

    def __init__(self, resets: int) -> None:
        self.attempts = 0
        self.requests = set[bytes]()
        self._resets = resets

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method.startswith("/grpc.health.v1.Health/"):
            # Clients take a server without health checks for healthy.
            return None

        async def answer(raw: bytes, context: Any) -> bytes:
            self.attempts += 1
            self.requests.add(raw)
            if self.attempts <= self._resets:
                await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
            return DEDUCTED.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = grpc.aio.server(handlers=[self])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


@pytest.mark.parametrize(
    ("idempotent", "resets", "attempts"), [(True, 2, 3), (True, 100, 5), (False, 1, 1)]
)
async def test_client_retries_reset_calls_of_idempotent_methods(
    idempotent: bool, resets: int, attempts: int
) -> None:
    server = StoppingServer(resets)
    reported: list[TallyError] = []
    async with (
        server.serving() as address,
        Tally(balance=address, order=address, on_repeat=reported.append) as tally,
    ):
        if resets < attempts:
            await call(tally, idempotent=idempotent)
        else:
            with pytest.raises(NoAnswer) as caught:
                await call(tally, idempotent=idempotent)
            assert caught.value.code is grpc.StatusCode.CANCELLED
            assert caught.value.may_repeat is idempotent
    assert server.attempts == attempts
    assert len(server.requests) == 1, "every attempt sends the same request_id"
    assert [type(error) for error in reported] == [NoAnswer] * (attempts - 1)
