"""Streams: resumed when they break, and closed when their consumer stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

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
from tests.integration.client.messages import LIMIT_S
from tests.support.fake_server import HANG, Received, TcpProxy, fake_server, fake_tally, refusal

WATCH = order_pb2.WatchOrderRequest(order_id="o1", user_id="ada")
STOPPING = refusal("UNAVAILABLE", "REPLICA_STOPPING")
BUSY = refusal("RESOURCE_EXHAUSTED", "OVERLOADED")


def at(version: int) -> order_pb2.WatchOrderResponse:
    return order_pb2.WatchOrderResponse(order=order_pb2.Order(version=version))


async def test_broken_stream_is_resumed_without_known_states() -> None:
    received = Received()
    seen: list[int] = []
    two_seen = asyncio.Event()
    streams = [[at(1), at(2), HANG], [at(2), STOPPING], [at(2), at(3)]]
    async with (
        fake_server(received, WatchOrder=streams) as address,
        TcpProxy.to(address) as proxy,
        Tally(order=proxy.address) as tally,
    ):

        async def watch() -> None:
            async for response in tally.order.watch_order(WATCH):
                seen.append(response.order.version)
                if response.order.version == 2:
                    two_seen.set()

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(two_seen.wait(), LIMIT_S)
        proxy.cut()
        await asyncio.wait_for(watching, LIMIT_S)
    assert seen == [1, 2, 3]
    assert received.attempts["WatchOrder"] == 3


async def test_stream_that_sends_nothing_fails_like_a_call() -> None:
    unavailable = refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE")
    async with fake_tally(WatchOrder=[[unavailable]]) as (tally, received):
        with pytest.raises(DatabaseUnavailable):
            await anext(tally.order.watch_order(WATCH, timeout_s=LIMIT_S))
    assert received.attempts["WatchOrder"] == 5


async def test_stream_ends_on_the_server_when_its_consumer_stops() -> None:
    left = asyncio.Event()

    async def states(_: Any) -> AsyncIterator[Any]:
        try:
            yield at(1)
            await asyncio.Event().wait()
        finally:
            left.set()

    async with fake_tally(WatchOrder=states) as (tally, _):
        watching = tally.order.watch_order(WATCH)
        assert (await anext(watching)).order.version == 1
        await watching.aclose()
        await asyncio.wait_for(left.wait(), LIMIT_S)


async def test_open_stream_ends_when_the_client_is_closed() -> None:
    async with fake_tally(WatchOrder=[[at(1), HANG]]) as (tally, received):
        watching = tally.order.watch_order(WATCH)
        assert (await anext(watching)).order.version == 1
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        await tally.close()
        with pytest.raises(NoAnswer) as caught:
            await asyncio.wait_for(waiting, LIMIT_S)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert received.attempts["WatchOrder"] == 1


async def test_stream_that_breaks_without_news_is_resumed_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks: list[int] = []

    def at_once(error: TallyError, broken: int) -> float:
        assert isinstance(error, ReplicaStopping)
        breaks.append(broken)
        return 0.0

    monkeypatch.setattr(policy, "resume_s", at_once)
    streams = [[at(1), STOPPING]] * 12 + [[at(2), STOPPING]] * 2 + [[at(2)]]
    async with fake_tally(WatchOrder=streams) as (tally, _):
        seen = [change.order.version async for change in tally.order.watch_order(WATCH)]
    assert seen == [1, 2]
    assert breaks == [*range(12), 0, 1], "a new state resets the count"


async def test_stream_without_deadline_fails_after_refusals_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy, "wait_s", lambda _, __: 0.0)
    async with fake_tally(WatchOrder=[[BUSY]]) as (tally, received):
        with pytest.raises(Overloaded):
            await anext(tally.order.watch_order(WATCH))
    assert received.attempts["WatchOrder"] == policy.UNTIMED_REFUSALS_MAX + 1


async def test_stream_can_have_a_deadline() -> None:
    async with fake_tally(WatchOrder=[[at(1), HANG]]) as (tally, _):
        with pytest.raises(DeadlineExceeded):
            async for _ in tally.order.watch_order(WATCH, timeout_s=0.5):
                pass


async def test_stream_is_opened_again_after_refusals_with_retry_info() -> None:
    reported: list[TallyError] = []
    streams = [[BUSY], [BUSY], [at(1)]]
    async with fake_tally(on_repeat=reported.append, WatchOrder=streams) as (tally, _):
        seen = [change.order.version async for change in tally.order.watch_order(WATCH)]
    assert seen == [1]
    assert [type(error) for error in reported] == [Overloaded] * 2


async def test_a_watch_of_seats_continues_after_the_last_complete_version() -> None:
    def seats(version: int) -> order_pb2.WatchSeatsResponse:
        return order_pb2.WatchSeatsResponse(
            seats=[order_pb2.Seat(label="A-1", version=max(version, 1))], version=version
        )

    request = order_pb2.WatchSeatsRequest(product_id="p1")
    # The part without a version is the beginning of a change.
    streams = [[seats(3), seats(0), STOPPING], [seats(5), STOPPING], [seats(7)]]
    async with fake_tally(WatchSeats=streams) as (tally, received):
        seen = [each.version async for each in tally.seat.watch_seats(request)]
    assert seen == [3, 0, 5, 7]
    asked = [each.after_version for each in received.requests["WatchSeats"]]
    assert asked == [0, 3, 5]
    assert not received.requests["WatchSeats"][0].HasField("after_version")
