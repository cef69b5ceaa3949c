"""A drain as clients see it that repeat nothing: calls in flight and calls just being sent."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import Code, RemoteRefusal
from common.rpc.health import Health
from common.rpc.status import from_rpc_error
from tests.integration.common.echo import Echo, serving
from tests.integration.common.test_clients import peer_of, replicas_seen, until_seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from common.rpc.client import ServiceClient
    from common.rpc.server import GrpcServer
    from tests.integration.common.echo import EchoStub

CALLERS = 16
HELD = 8
LIMIT_S = 90.0
DRAINS_MAX = 20
"""How often a drain without warning is tried until a call is seen to fail. Nearly always the first
one shows it: calls that arrive while the server stops."""


class Slow:
    """Answers at once, or at its release where it was asked to ``hold``."""

    def __init__(self) -> None:
        self.held = 0
        self.release = asyncio.Event()
        self.echo = Echo(self._say, self._count)

    async def _say(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "hold":
            self.held += 1
            await self.release.wait()
        return request

    async def _count(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        await asyncio.Event().wait()


class Callers:
    """Clients that call one after the other until they are told that it is over."""

    def __init__(self, peer: ServiceClient[EchoStub]) -> None:
        self.answered = 0
        self.failed: list[tuple[Code, str]] = []
        self._peer = peer
        self._over = asyncio.Event()

    async def call(self, value: str) -> None:
        try:
            answer = await self._peer.call(
                self._peer.stub.Say, StringValue(value=value), limit_s=LIMIT_S, repeat=False
            )
        except RemoteRefusal as refusal:
            self.failed.append((refusal.code, refusal.reason))
            return
        assert answer.value == value
        self.answered += 1

    async def _calls(self, name: int) -> None:
        number = 0
        while not self._over.is_set():
            await self.call(f"{name}:{number}")
            number += 1

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._calls(name)) for name in range(CALLERS)]
        try:
            yield
            self._over.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def more(self, count: int) -> None:
        """Until this many more calls have ended, well or not."""
        enough = self.answered + len(self.failed) + count
        while self.answered + len(self.failed) < enough:  # noqa: ASYNC110 - counted by the calls
            await asyncio.sleep(0.005)


class Pair:
    """Two replicas, one of which is going to leave, and callers of both."""

    def __init__(
        self, leaving: GrpcServer, address: str, slow: Slow, peer: ServiceClient[EchoStub]
    ) -> None:
        self.leaving = leaving
        self.address = address
        self.slow = slow
        self.peer = peer
        self.callers = Callers(peer)


@asynccontextmanager
async def pair(drain_delay_s: float) -> AsyncIterator[Pair]:
    slow = Slow()
    async with AsyncExitStack() as stack:
        stays, _ = await stack.enter_async_context(serving(replica="stays"))
        goes, leaving = await stack.enter_async_context(
            # A grace longer than any test may last: no call ends for want of it.
            serving(slow.echo, replica="goes", drain_delay_s=drain_delay_s, grace_s=300.0)
        )
        peer = await stack.enter_async_context(peer_of(stays, goes))
        await until_seen(peer, {"stays", "goes"})
        yield Pair(leaving, goes, slow, peer)


async def stopping(two: Pair) -> asyncio.Task[None]:
    """A task that ends when the leaving replica takes no more calls: streams end just before."""
    opened = asyncio.Event()

    async def watch() -> None:
        async with peer_of(two.address) as direct:
            stream = direct.stub.Count(StringValue())
            await stream.read()
            opened.set()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
            assert from_rpc_error(ended.value).reason == "REPLICA_STOPPING"

    task = asyncio.create_task(watch())
    await opened.wait()
    return task


async def test_no_call_fails_while_one_of_two_replicas_drains() -> None:
    """Neither those in flight when it stops, nor those sent before, while and after it does."""
    async with pair(drain_delay_s=3.0) as two:
        callers = two.callers
        stop = await stopping(two)
        held: list[asyncio.Task[None]] = []
        while two.slow.held < HELD:
            held += [asyncio.create_task(callers.call("hold")) for _ in range(2)]
            await asyncio.sleep(0.01)
        async with callers.calling():
            await callers.more(5 * CALLERS)
            draining = asyncio.create_task(two.leaving.drain())
            await stop
            await callers.more(20 * CALLERS)
            assert not draining.done(), "it waits for the calls in flight"
            before = callers.answered
            two.slow.release.set()
            await asyncio.gather(*held)
            assert callers.answered >= before + two.slow.held
            await draining
            await callers.more(5 * CALLERS)
        assert callers.failed == []
        assert await replicas_seen(two.peer, 10) == {"stays": 10}


async def failures_of_a_drain_that_health_does_not_tell() -> list[tuple[Code, str]]:
    async with pair(drain_delay_s=0.2) as two, two.callers.calling():
        await two.callers.more(5 * CALLERS)
        await two.leaving.drain()
        await two.callers.more(5 * CALLERS)
    return two.callers.failed


async def test_control_without_not_serving_the_calls_that_meet_the_stop_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a bare status: nothing tells such a client whether its call was carried out."""
    monkeypatch.setattr(Health, "drain", lambda _: None)
    failed: list[tuple[Code, str]] = []
    for _ in range(DRAINS_MAX):
        failed = await failures_of_a_drain_that_health_does_not_tell()
        if failed:
            break
    assert failed
    assert set(failed) <= {(Code.CANCELLED, ""), (Code.UNAVAILABLE, "")}
