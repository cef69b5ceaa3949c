"""Health, drain, reflection, and an address that is not free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import Code
from common.rpc.server import GrpcServer, PortTaken
from tests.integration.common.echo import (
    NOT_SERVING,
    SERVING,
    Echo,
    Held,
    add,
    always_ready,
    connected,
    refusal_of,
    serving,
    settings,
)

List: Any = health_pb2.HealthListRequest  # type: ignore[attr-defined]  # newer than its stubs


class Probe:
    """A readiness probe whose result the test sets."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self._begun = asyncio.Semaphore(0)

    async def begun(self, more: int) -> None:
        """Return when this many more probes have begun."""
        while not self._begun.locked():
            await self._begun.acquire()
        for _ in range(more):
            await self._begun.acquire()

    async def __call__(self) -> None:
        self._begun.release()
        if self.problem:
            raise RuntimeError(self.problem)


# -- health ----------------------------------------------------------------------------------------


async def test_readiness_follows_its_probe_and_liveness_does_not() -> None:
    probe = Probe("the database does not answer")
    async with connected(ready=probe) as client:
        watch = client.watch()
        # This watch would get every change of liveness; it gets only the first status.
        living = client.watch("liveness")
        assert await living.next() == SERVING
        changed = asyncio.ensure_future(living.next())
        for problem in ("no answer", "", "gone", "", "gone again"):
            probe.problem = problem
            expected = NOT_SERVING if problem else SERVING
            assert await watch.next() == expected
            assert await client.check() == expected
            assert await client.check("liveness") == SERVING
        assert not changed.done()
        changed.cancel()
        stub: Any = health_pb2_grpc.HealthStub(client.channel)
        listed = (await stub.List(List())).statuses
        assert {name: each.status for name, each in listed.items()} == {
            "": NOT_SERVING,
            "liveness": SERVING,
        }


async def test_readiness_is_not_serving_before_any_probe_has_ended() -> None:
    probing = asyncio.Event()

    async def never() -> None:
        probing.set()
        await asyncio.Event().wait()

    async with connected(ready=never) as client:
        await probing.wait()
        assert await client.check() == NOT_SERVING


async def test_no_call_is_served_before_the_first_passed_probe() -> None:
    probe = Probe("the database has no schema yet")
    called: list[str] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        called.append(request.value)
        return request

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        called.append(request.value)
        yield request

    async with connected(Echo(say, count), ready=probe) as client:
        early = StringValue(value="early")
        for call in (client.echo.Say(early), client.echo.Count(early).read()):
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "REPLICA_NOT_READY")
            assert refusal.retry_after_s
            assert "database" not in refusal.message
        watch = client.watch()
        assert await watch.next() == NOT_SERVING
        probe.problem = ""
        assert await watch.next() == SERVING
        await client.echo.Say(StringValue(value="served"))
        # Later the methods report what they lack: reads may still be possible.
        probe.problem = "the database is gone"
        assert await watch.next() == NOT_SERVING
        await client.echo.Say(StringValue(value="still served"))
    assert called == ["served", "still served"]


async def test_the_health_of_an_unknown_service_is_not_found() -> None:
    async with connected() as client:
        assert (await refusal_of(client.check("unknown"))).code is Code.NOT_FOUND
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert await client.watch("unknown").next() == unknown


async def test_health_answers_while_calls_are_refused_for_overload() -> None:
    held = Held()
    async with connected(held.echo, max_concurrent_calls=1) as client:
        running = asyncio.ensure_future(client.echo.Say(StringValue()))
        await held.begun.wait()
        assert (await refusal_of(client.echo.Say(StringValue()))).reason == "OVERLOADED"
        for service in ("", "liveness"):
            assert await client.check(service) == SERVING
            assert await client.watch(service).next() == SERVING
        held.release.set()
        await running


async def test_a_probe_cancelled_from_within_counts_as_failed() -> None:
    """As by a driver whose future was cancelled: probing continues."""
    lost: asyncio.Future[None] | None = None

    async def ready() -> None:
        if lost is not None:
            await lost

    async with connected(ready=ready) as client:
        watch = client.watch()
        await watch.until(SERVING)
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        assert await watch.next() == NOT_SERVING
        lost = None
        assert await watch.next() == SERVING


class NoText(Exception):  # noqa: N818 - no real fault
    def __str__(self) -> str:
        raise ValueError("no text")


async def test_an_end_of_the_probing_ends_the_server() -> None:
    """Otherwise health would never change again."""

    async def ready() -> None:
        raise NoText

    async with serving(ready=ready) as (_, server):
        with pytest.raises(ValueError, match="no text"):
            await server.ended()
        server._probing = None


# -- drain -----------------------------------------------------------------------------------------


async def test_drain_changes_health_ends_streams_and_lets_calls_end() -> None:
    held, stream_held = Held(), Held()
    # A grace longer than any test: draining can only end without it.
    async with connected(Echo(held.say, stream_held.count), grace_s=300.0) as client:
        watch = client.watch()
        await watch.until(SERVING)
        stream = client.echo.Count(StringValue(value="1"))
        await stream.read()
        running = asyncio.ensure_future(client.echo.Say(StringValue(value="late")))
        await held.begun.wait()

        draining = asyncio.create_task(client.server.drain())
        assert await watch.next() == NOT_SERVING
        for ended in (watch.next(), stream.read()):
            refusal = await refusal_of(ended)
            assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "REPLICA_STOPPING")
            assert refusal.retry_after_s is not None
        assert not draining.done()
        held.release.set()
        assert (await running).value == "late"
        await draining


async def test_drain_waits_for_the_clean_up_of_calls_that_the_grace_cut_off() -> None:
    begun = asyncio.Event()
    events: list[str] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            events.append("cleaned up")
        raise AssertionError

    async with connected(Echo(say), grace_s=0.05) as client:
        running = asyncio.ensure_future(client.echo.Say(StringValue()))
        await begun.wait()
        await client.server.drain()
        events.append("drained")
        with pytest.raises(grpc.aio.AioRpcError):
            await running
    assert events == ["cleaned up", "drained"]


async def test_during_the_drain_delay_calls_are_still_served() -> None:
    async with connected(drain_delay_s=300.0) as client:
        watch = client.watch()
        await watch.until(SERVING)
        draining = asyncio.create_task(client.server.drain())
        assert await watch.next() == NOT_SERVING
        assert (await client.echo.Say(StringValue(value="served"))).value == "served"
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining
        client.server._settings = settings(drain_delay_s=0.0)


async def test_a_probe_that_passes_during_the_drain_changes_nothing() -> None:
    probe = Probe()
    async with connected(ready=probe) as client:
        await client.watch().until(SERVING)
        client.server.health.drain()
        for problem in ("gone", "", "gone", ""):
            probe.problem = problem
            # The first may have begun before the change. When a third begins, the second's result
            # has been taken.
            await probe.begun(3)
            assert not client.server.health.ready


# -- the address -----------------------------------------------------------------------------------


async def test_a_taken_port_is_reported_in_one_line() -> None:
    async with serving() as (address, _):
        second = GrpcServer(settings(bind=address), ready=always_ready)
        with pytest.raises(PortTaken) as caught:
            await second.start()
        expected = f"TALLY_ECHO_BIND: cannot listen on {address}: Address already in use"
        assert str(caught.value) == expected


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid"])
async def test_an_address_of_another_machine_is_not_reported_as_in_use(host: str) -> None:
    server = GrpcServer(settings(bind=f"{host}:50051"), ready=always_ready)
    server.mount(add, Echo())
    with pytest.raises(PortTaken, match=f"cannot listen on {host}:50051: ") as caught:
        await server.start()
    assert "in use" not in str(caught.value)
