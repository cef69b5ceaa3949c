"""Calls that a server resets while it stops: clients are told CANCELLED, and nothing more."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tally.balance.v1.balance_pb2 import DeductBalanceRequest, DeductBalanceResponse
from tally.order.v1.order_pb2 import SetCartItemRequest
from tally_client import NoAnswer, Tally, TallyError

LIMIT_S = 30.0


class Stopping(grpc.GenericRpcHandler):
    """Answers by a bare CANCELLED, as a server that stops; after ``resets`` calls, properly."""

    def __init__(self, resets: int) -> None:
        self.calls = Counter[str]()
        self.requests = set[bytes]()
        self._resets = resets

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        service, _, name = handler_call_details.method.rpartition("/")
        if service == "/grpc.health.v1.Health":
            # A server without health is one that clients take for healthy.
            return None

        async def answer(raw: bytes, context: Any) -> bytes:
            self.calls[name] += 1
            self.requests.add(raw)
            if self.calls[name] <= self._resets:
                await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
            return DeductBalanceResponse(replayed=True).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def stopping(resets: int) -> AsyncIterator[tuple[Stopping, str]]:
    handler = Stopping(resets)
    server = grpc.aio.server(handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_safe_call_is_sent_again_under_its_request_id() -> None:
    told: list[TallyError] = []
    async with (
        stopping(resets=2) as (handler, address),
        Tally(balance=address, on_repeat=told.append) as tally,
    ):
        answer = await tally.balance.deduct_balance(DeductBalanceRequest(), timeout_s=LIMIT_S)
    assert answer.replayed
    assert handler.calls["DeductBalance"] == 3
    assert len(handler.requests) == 1
    assert [type(error) for error in told] == [NoAnswer, NoAnswer]


async def test_it_is_given_up_after_five_attempts() -> None:
    async with stopping(resets=100) as (handler, address), Tally(balance=address) as tally:
        with pytest.raises(NoAnswer) as caught:
            await tally.balance.deduct_balance(DeductBalanceRequest(), timeout_s=LIMIT_S)
    assert handler.calls["DeductBalance"] == 5
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert caught.value.may_repeat


async def test_an_unsafe_call_is_sent_once() -> None:
    async with stopping(resets=1) as (handler, address), Tally(order=address) as tally:
        with pytest.raises(NoAnswer) as caught:
            await tally.cart.set_cart_item(SetCartItemRequest(), timeout_s=LIMIT_S)
    assert handler.calls["SetCartItem"] == 1
    assert not caught.value.may_repeat
