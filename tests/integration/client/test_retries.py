"""What a channel with the published service config repeats, and what it must not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from common.errors import Code, DatabaseUnavailable, RemoteRefusal
from common.rpc.channels import open_channel
from tally.balance.v1 import balance_pb2
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.order.v1 import order_pb2
from tally.order.v1.order_pb2_grpc import CartServiceStub
from tally_client import policy
from tests.integration.client.answering import Received, Wire, answering, failing

BALANCE = balance_pb2.DESCRIPTOR.services_by_name["BalanceService"].methods_by_name
CART = order_pb2.DESCRIPTOR.services_by_name["CartService"].methods_by_name
DEDUCTED = balance_pb2.DeductBalanceResponse(replayed=True)
SAFE = balance_pb2.DeductBalanceRequest(user_id="ada", request_id="r1")
SAFE.amount.currency_code = "KRW"
SAFE.amount.amount_minor = 1
UNSAFE = order_pb2.SetCartItemRequest(user_id="ada", product_id="mug", quantity=1)
LIMIT_S = 30


class QuickDatabase(DatabaseUnavailable):
    """As DATABASE_UNAVAILABLE, to be tried again at once."""

    retry_after_s = 0.01


@asynccontextmanager
async def channel(address: str, **changes: Any) -> AsyncIterator[grpc.aio.Channel]:
    opened = open_channel(address, config={**copy.deepcopy(policy.CHANNEL), **changes})
    try:
        yield opened
    finally:
        await opened.close()


async def test_a_safe_call_is_repeated_until_a_replica_can() -> None:
    received = Received()
    answer = failing(3, QuickDatabase, DEDUCTED)
    async with (
        answering(received, (BALANCE["DeductBalance"], answer)) as address,
        channel(address) as opened,
    ):
        told = await BalanceServiceStub(opened).DeductBalance(SAFE, timeout=LIMIT_S)
    assert told == DEDUCTED
    assert received.attempts["DeductBalance"] == 4
    assert {request.request_id for request in received.requests["DeductBalance"]} == {"r1"}


async def test_it_is_given_up_after_five_attempts() -> None:
    received = Received()
    answer = failing(100, QuickDatabase, DEDUCTED)
    async with (
        answering(received, (BALANCE["DeductBalance"], answer)) as address,
        channel(address) as opened,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await BalanceServiceStub(opened).DeductBalance(SAFE, timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert received.attempts["DeductBalance"] == 5


async def test_an_unsafe_call_is_sent_once() -> None:
    received = Received()
    answer = failing(1, QuickDatabase, order_pb2.SetCartItemResponse())
    async with (
        answering(received, (CART["SetCartItem"], answer)) as address,
        channel(address) as opened,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await CartServiceStub(opened).SetCartItem(UNSAFE, timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert received.attempts["SetCartItem"] == 1


@pytest.mark.parametrize("code", [Code.ABORTED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL])
async def test_other_codes_are_not_repeated_by_the_channel(code: Code) -> None:
    received = Received()
    answer = failing(
        1, lambda: RemoteRefusal(code, "SOME_REASON", "No.", {}, retry_after_s=0.01), DEDUCTED
    )
    async with (
        answering(received, (BALANCE["DeductBalance"], answer)) as address,
        channel(address) as opened,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await BalanceServiceStub(opened).DeductBalance(SAFE, timeout=LIMIT_S)
    assert received.attempts["DeductBalance"] == 1


async def test_what_the_server_says_never_to_repeat_is_not() -> None:
    received = Received()
    answer = failing(
        1, lambda: RemoteRefusal(Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE", "No.", {}), DEDUCTED
    )
    async with (
        answering(received, (BALANCE["DeductBalance"], answer)) as address,
        channel(address) as opened,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await BalanceServiceStub(opened).DeductBalance(SAFE, timeout=LIMIT_S)
    assert received.attempts["DeductBalance"] == 1


async def test_a_lost_answer_is_asked_for_again_only_where_that_is_safe() -> None:
    received = Received()
    arrived = asyncio.Event()
    first = True

    async def never_once(_: Any) -> Any:
        nonlocal first
        if first:
            first = False
            arrived.set()
            await asyncio.Event().wait()
        return DEDUCTED

    async def never(_: Any) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    methods = ((BALANCE["DeductBalance"], never_once), (CART["SetCartItem"], never))
    async with (
        answering(received, *methods) as address,
        Wire.to(address) as wire,
        channel(wire.address) as opened,
    ):
        safe: Any = BalanceServiceStub(opened).DeductBalance(SAFE, timeout=LIMIT_S)
        await asyncio.wait_for(arrived.wait(), LIMIT_S)
        wire.cut()
        assert await safe == DEDUCTED
        arrived.clear()
        unsafe: Any = CartServiceStub(opened).SetCartItem(UNSAFE, timeout=LIMIT_S)
        await asyncio.wait_for(arrived.wait(), LIMIT_S)
        wire.cut()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unsafe
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert received.attempts == {"DeductBalance": 2, "SetCartItem": 1}


async def test_when_too_much_fails_nothing_is_repeated_any_more() -> None:
    received = Received()
    answer = failing(100, QuickDatabase, DEDUCTED)
    throttling = {"maxTokens": 4, "tokenRatio": 0.1}
    attempts = []
    async with (
        answering(received, (BALANCE["DeductBalance"], answer)) as address,
        channel(address, retryThrottling=throttling) as opened,
    ):
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await BalanceServiceStub(opened).DeductBalance(SAFE, timeout=LIMIT_S)
            attempts.append(received.attempts["DeductBalance"])
    # Four tokens, one for each failure; with no more than half of them left there are no retries.
    assert attempts == [2, 3, 4]
