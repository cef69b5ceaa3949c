"""A drain as clients without retries see it: calls in flight, and calls that are just sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import Code, RemoteRefusal
from common.rpc.client import ServiceClient
from common.rpc.health import Health
from common.rpc.server import GrpcServer
from tests.integration.common.echo import Echo, EchoStub, client_of, refusal_of, serving
from tests.integration.common.test_clients import replicas_seen, until_seen

CALLERS = 16
HELD = 8
LIMIT_S = 90.0
DRAINS_MAX = 20
"""Drains without NOT_SERVING until a call is seen to fail. Nearly always the first one shows it:
calls that arrive while the server stops."""


class Slow:
    """A servicer that replies at once, or at its release to a request for ``hold``."""

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
    """Clients that call again and again until ``calling`` ends."""

    def __init__(self, client: ServiceClient[EchoStub]) -> None:
        self.answered = 0
        self.failed: list[tuple[Code, str]] = []
        self._client = client
        self._over = asyncio.Event()

    async def call(self, value: str) -> None:
        say, request = self._client.stub.Say, StringValue(value=value)
        try:
            response = await self._client.call(say, request, limit_s=LIMIT_S, attempts_max=1)
        except RemoteRefusal as refusal:
            self.failed.append((refusal.code, refusal.reason))
            return
        assert response.value == value
        self.answered += 1

    async def _calls(self, name: int) -> None:
        number = 0
        while not self._over.is_set():
            await self.call(f"{name}:{number}")
            number += 1

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for name in range(CALLERS):
                tasks.create_task(self._calls(name))
            yield
            self._over.set()

    async def more(self, count: int) -> None:
        """Return when this many more calls have ended, well or not."""
        enough = self.answered + len(self.failed) + count
        while self.answered + len(self.failed) < enough:  # noqa: ASYNC110 - counted by the calls
            await asyncio.sleep(0.005)


@dataclass
class Pair:
    """Two replicas, one of which is going to stop, and callers of both."""

    stopping: GrpcServer
    address: str
    slow: Slow
    client: ServiceClient[EchoStub]
    callers: Callers


@asynccontextmanager
async def pair(drain_delay_s: float) -> AsyncIterator[Pair]:
    slow = Slow()
    async with AsyncExitStack() as stack:
        stays, _ = await stack.enter_async_context(serving(replica="stays"))
        goes, stopping = await stack.enter_async_context(
            # A grace longer than any test: no call ends because of it.
            serving(slow.echo, replica="goes", drain_delay_s=drain_delay_s, grace_s=300.0)
        )
        client = await stack.enter_async_context(client_of(stays, goes))
        await until_seen(client, {"stays", "goes"})
        yield Pair(stopping, goes, slow, client, Callers(client))


async def stream_until_stopped(two: Pair) -> asyncio.Task[None]:
    """A task that ends when the replica accepts no more calls: streams end just before."""
    opened = asyncio.Event()

    async def watch() -> None:
        async with client_of(two.address) as direct:
            stream = direct.stub.Count(StringValue())
            await stream.read()
            opened.set()
            assert (await refusal_of(stream.read())).reason == "REPLICA_STOPPING"

    task = asyncio.create_task(watch())
    await opened.wait()
    return task


async def test_no_call_fails_while_one_of_two_replicas_drains() -> None:
    """Neither those in flight when it stops, nor those sent before, while and after it does."""
    async with pair(drain_delay_s=3.0) as two:
        callers = two.callers
        stopped = await stream_until_stopped(two)
        held: list[asyncio.Task[None]] = []
        while two.slow.held < HELD:
            held += [asyncio.create_task(callers.call("hold")) for _ in range(2)]
            await asyncio.sleep(0.01)
        async with callers.calling():
            await callers.more(5 * CALLERS)
            draining = asyncio.create_task(two.stopping.drain())
            await stopped
            await callers.more(20 * CALLERS)
            assert not draining.done(), "it waits for the calls in flight"
            before = callers.answered
            two.slow.release.set()
            await asyncio.gather(*held)
            assert callers.answered >= before + two.slow.held
            await draining
            await callers.more(5 * CALLERS)
        assert callers.failed == []
        assert await replicas_seen(two.client, 10) == {"stays": 10}


async def failures_without_not_serving() -> list[tuple[Code, str]]:
    async with pair(drain_delay_s=0.2) as two, two.callers.calling():
        await two.callers.more(5 * CALLERS)
        await two.stopping.drain()
        await two.callers.more(5 * CALLERS)
    return two.callers.failed


async def test_control_without_not_serving_calls_during_the_stop_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a bare status: such a client cannot know whether its call had its effect."""
    monkeypatch.setattr(Health, "drain", lambda _: None)
    failed: list[tuple[Code, str]] = []
    for _ in range(DRAINS_MAX):
        failed = await failures_without_not_serving()
        if failed:
            break
    assert failed
    assert set(failed) <= {(Code.CANCELLED, ""), (Code.UNAVAILABLE, "")}
