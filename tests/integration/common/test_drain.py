"""A drain as clients without retries see it: calls in flight, and calls that are just sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import Code
from common.rpc.health import Health
from common.rpc.server import GrpcServer
from tests.integration.common.callers import Callers, replicas_seen, until_seen
from tests.integration.common.echo import Held, client_of, serving
from tests.support.waits import until_true

CALLERS = 16
HELD = 8
DRAINS_MAX = 20
"""Drains without NOT_SERVING until a call is seen to fail. Nearly always the first one shows it:
calls that arrive while the server stops."""


@dataclass
class Pair:
    """Two replicas, one of which is going to stop, and callers of both."""

    stopping: GrpcServer
    held: Held
    callers: Callers

    @property
    def in_flight(self) -> int:
        return sum(call.value == "hold" for call in self.held.received)


@asynccontextmanager
async def pair(drain_delay_s: float) -> AsyncIterator[Pair]:
    held = Held(only="hold")
    # A grace longer than any test: no call ends because of it.
    goes = serving(held, replica="goes", drain_delay_s=drain_delay_s, grace_s=300.0)
    async with (
        serving(replica="stays") as (other, _),
        goes as (address, stopping),
        client_of(other, address) as client,
    ):
        await until_seen(client, {"stays", "goes"})
        yield Pair(stopping, held, Callers(client, CALLERS))


async def test_no_call_fails_while_one_of_two_replicas_drains() -> None:
    """Neither those in flight when it stops, nor those sent before, while and after it does."""
    async with pair(drain_delay_s=3.0) as two:
        callers = two.callers
        held: list[asyncio.Task[None]] = []
        while two.in_flight < HELD:
            held += [asyncio.create_task(callers.call("hold")) for _ in range(2)]
            await asyncio.sleep(0.01)
        async with callers.calling():
            await callers.more(5 * CALLERS)
            draining = asyncio.create_task(two.stopping.drain())
            await until_true(lambda: two.stopping._handlers._open_streams.closed)
            await callers.more(20 * CALLERS)
            assert not draining.done(), "it waits for the calls in flight"
            before = callers.answered_by.count("goes")
            two.held.release.set()
            await asyncio.gather(*held)
            assert callers.answered_by.count("goes") >= before + two.in_flight
            await draining
            await callers.more(5 * CALLERS)
        assert callers.failed == []
        assert await replicas_seen(callers.client, 10) == {"stays": 10}


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


async def test_a_task_that_has_failed_leaves_nothing_open() -> None:
    closed: list[str] = []

    async def fail() -> None:
        raise MemoryError

    async def close(name: str) -> None:
        closed.append(name)

    async with serving() as (_, server):
        failed = asyncio.create_task(fail())
        await asyncio.wait([failed])
        server._following.append(failed)
        opened: Any = server
        opened._identity = SimpleNamespace(
            stop=partial(close, "identity"), check_ready=lambda: None
        )
        opened._limits = SimpleNamespace(close=partial(close, "limits"))
        await server.drain()
        assert closed == ["identity", "limits"]
        opened._identity = opened._limits = None
