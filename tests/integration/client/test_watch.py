"""Streams: taken up again when they break, ended when nobody watches any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from common.errors import Code, RemoteRefusal
from tally.order.v1 import order_pb2
from tally_client import (
    DatabaseUnavailable,
    DeadlineExceeded,
    NoAnswer,
    Overloaded,
    ReplicaStopping,
    Tally,
    TallyError,
    policy,
)
from tests.integration.client.answering import Received, Wire, answering

ORDER = order_pb2.DESCRIPTOR.services_by_name["OrderService"].methods_by_name
LIMIT_S = 30.0


def at(version: int) -> order_pb2.WatchOrderResponse:
    return order_pb2.WatchOrderResponse(order=order_pb2.Order(version=version))


WATCH = order_pb2.WatchOrderRequest(order_id="o1", user_id="ada")


async def test_a_stream_that_breaks_is_taken_up_where_it_was() -> None:
    received = Received()
    seen: list[int] = []
    two_seen = asyncio.Event()

    async def states(_: Any) -> AsyncIterator[Any]:
        if received.attempts["WatchOrder"] == 1:
            yield at(1)
            yield at(2)
            await asyncio.Event().wait()
        elif received.attempts["WatchOrder"] == 2:
            yield at(2)
            raise RemoteRefusal(
                Code.UNAVAILABLE, "REPLICA_STOPPING", "Stopping.", {}, retry_after_s=0.01
            )
        else:
            yield at(2)
            yield at(3)

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Wire.to(address) as wire,
        Tally(order=wire.address) as tally,
    ):

        async def watch() -> None:
            async for response in tally.order.watch_order(WATCH):
                seen.append(response.order.version)
                if response.order.version == 2:
                    two_seen.set()

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(two_seen.wait(), LIMIT_S)
        wire.cut()
        await asyncio.wait_for(watching, LIMIT_S)
    assert seen == [1, 2, 3]
    assert received.attempts["WatchOrder"] == 3


async def test_a_stream_that_brings_nothing_is_given_up_as_a_call_is() -> None:
    received = Received()

    async def states(_: Any) -> AsyncIterator[Any]:
        raise RemoteRefusal(
            Code.UNAVAILABLE, "DATABASE_UNAVAILABLE", "Gone.", {}, retry_after_s=0.01
        )
        yield

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address) as tally,
    ):
        with pytest.raises(DatabaseUnavailable):
            async for _ in tally.order.watch_order(WATCH, timeout_s=LIMIT_S):
                pass
    assert received.attempts["WatchOrder"] == 5


async def test_whoever_stops_watching_is_not_watched_for() -> None:
    received = Received()
    left = asyncio.Event()

    async def states(_: Any) -> AsyncIterator[Any]:
        try:
            yield at(1)
            await asyncio.Event().wait()
        finally:
            left.set()

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address) as tally,
    ):
        watching = tally.order.watch_order(WATCH)
        assert (await anext(watching)).order.version == 1
        await watching.aclose()
        await asyncio.wait_for(left.wait(), LIMIT_S)


async def test_a_stream_that_is_open_when_the_client_is_closed_ends_as_one_without_an_answer() -> (
    None
):
    received = Received()

    async def states(_: Any) -> AsyncIterator[Any]:
        yield at(1)
        await asyncio.Event().wait()

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address) as tally,
    ):
        watching = tally.order.watch_order(WATCH)
        assert (await anext(watching)).order.version == 1
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        await tally.close()
        with pytest.raises(NoAnswer) as caught:
            await asyncio.wait_for(waiting, LIMIT_S)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert received.attempts["WatchOrder"] == 1


async def test_a_stream_that_keeps_breaking_without_news_goes_on_and_slows_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = Received()
    breaks: list[int] = []

    def at_once(error: TallyError, broken: int) -> float:
        assert isinstance(error, ReplicaStopping)
        breaks.append(broken)
        return 0.0

    monkeypatch.setattr(policy, "resume_s", at_once)

    async def states(_: Any) -> AsyncIterator[Any]:
        yield at(1 if received.attempts["WatchOrder"] <= 12 else 2)
        if received.attempts["WatchOrder"] == 15:
            return
        raise RemoteRefusal(
            Code.UNAVAILABLE, "REPLICA_STOPPING", "Stopping.", {}, retry_after_s=0.01
        )

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address) as tally,
    ):
        seen = [change.order.version async for change in tally.order.watch_order(WATCH)]
    assert seen == [1, 2]
    assert breaks == [*range(12), 0, 1], "a new state is what it begins anew with"


async def test_a_stream_that_is_only_ever_refused_is_given_up_though_it_has_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = Received()
    monkeypatch.setattr(policy, "wait_s", lambda _, __: 0.0)

    async def states(_: Any) -> AsyncIterator[Any]:
        raise RemoteRefusal(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "Busy.", {}, retry_after_s=0.01)
        yield

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address) as tally,
    ):
        with pytest.raises(Overloaded):
            await anext(tally.order.watch_order(WATCH))
    assert received.attempts["WatchOrder"] == policy.UNTIMED_REFUSALS_MAX + 1


async def test_a_stream_can_have_a_deadline() -> None:
    received = Received()

    async def states(_: Any) -> AsyncIterator[Any]:
        yield at(1)
        await asyncio.Event().wait()

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address) as tally,
    ):
        with pytest.raises(DeadlineExceeded):
            async for _ in tally.order.watch_order(WATCH, timeout_s=0.5):
                pass


async def test_a_stream_that_is_refused_for_a_while_is_asked_for_again() -> None:
    received = Received()
    told: list[TallyError] = []

    async def states(_: Any) -> AsyncIterator[Any]:
        if received.attempts["WatchOrder"] < 3:
            raise RemoteRefusal(
                Code.RESOURCE_EXHAUSTED, "OVERLOADED", "Busy.", {}, retry_after_s=0.01
            )
        yield at(1)

    async with (
        answering(received, (ORDER["WatchOrder"], states)) as address,
        Tally(order=address, on_repeat=told.append) as tally,
    ):
        seen = [change.order.version async for change in tally.order.watch_order(WATCH)]
    assert seen == [1]
    assert [type(error) for error in told] == [Overloaded] * 2
