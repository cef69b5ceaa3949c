"""Health, drain, reflection, and a port that cannot be had."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.errors import Code
from common.rpc.server import GrpcServer, PortTaken
from common.rpc.status import from_rpc_error
from tally.balance.v1 import balance_pb2_grpc
from tests.integration.common.echo import (
    NAME,
    Echo,
    EchoStub,
    add,
    always_ready,
    serving,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
List: Any = health_pb2.HealthListRequest  # type: ignore[attr-defined]  # newer than its stubs
V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


class Probe:
    """A readiness probe whose answer the test sets."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self._begun = asyncio.Semaphore(0)

    async def begun(self, more: int) -> None:
        """Returns when so many more have begun from now on."""
        while not self._begun.locked():
            await self._begun.acquire()
        for _ in range(more):
            await self._begun.acquire()

    async def __call__(self) -> None:
        self._begun.release()
        if self.reason:
            raise RuntimeError(self.reason)


def health_stub(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def told(health: Any, service: str) -> Any:
    """The status that ``Check`` answers."""
    return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_readiness_follows_its_probe_and_liveness_does_not() -> None:
    probe = Probe("the database does not answer")
    async with (
        serving(ready=probe) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        health = health_stub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        # A status that changed would be told here: nothing is but the first.
        living = health.Watch(health_pb2.HealthCheckRequest(service="liveness"))
        assert (await living.read()).status == SERVING
        changed = asyncio.ensure_future(living.read())
        for reason in ("no answer", "", "gone", "", "gone again"):
            probe.reason = reason
            expected = NOT_SERVING if reason else SERVING
            assert (await watch.read()).status == expected
            assert await told(health, "") == expected
            assert await told(health, "liveness") == SERVING
        assert not changed.done()
        changed.cancel()
        listed = (await health.List(List())).statuses
        assert {name: each.status for name, each in listed.items()} == {
            "": NOT_SERVING,
            "liveness": SERVING,
        }


async def test_readiness_begins_as_not_serving_before_any_probe_has_ended() -> None:
    probing = asyncio.Event()

    async def never() -> None:
        probing.set()
        await asyncio.Event().wait()

    async with (
        serving(ready=never) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        await probing.wait()
        answer = await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == NOT_SERVING


async def test_before_it_was_ready_once_a_replica_serves_no_call_and_tells_its_health() -> None:
    probe = Probe("the database has no schema yet")
    called: list[str] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        called.append(request.value)
        return request

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        called.append(request.value)
        yield request

    async with (
        serving(Echo(say, count), ready=probe) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        early = StringValue(value="early")
        for answer in (EchoStub(channel).Say(early), EchoStub(channel).Count(early).read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answer
            refusal = from_rpc_error(caught.value)
            assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "REPLICA_NOT_READY")
            assert refusal.retry_after_s
            assert "database" not in refusal.message
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        probe.reason = ""
        assert (await watch.read()).status == SERVING
        await EchoStub(channel).Say(StringValue(value="served"))
        # Later, the methods tell themselves what they lack: reads may still be possible.
        probe.reason = "the database is gone"
        assert (await watch.read()).status == NOT_SERVING
        await EchoStub(channel).Say(StringValue(value="still served"))
    assert called == ["served", "still served"]


async def test_the_health_of_an_unknown_service_is_not_found() -> None:
    async with serving() as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_stub(channel).Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_health_answers_while_calls_are_refused_for_overload() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        await release.wait()
        return request

    async with (
        serving(Echo(say), max_concurrent_calls=1) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        running = asyncio.ensure_future(EchoStub(channel).Say(StringValue()))
        await begun.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoStub(channel).Say(StringValue())
        assert from_rpc_error(caught.value).reason == "OVERLOADED"
        health = health_stub(channel)
        for service in ("", "liveness"):
            assert await told(health, service) == SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
            assert (await watch.read()).status == SERVING
        release.set()
        await running


async def test_drain_tells_watchers_lets_calls_end_and_waits_for_no_stream() -> None:
    begun, release = asyncio.Event(), asyncio.Event()
    events: list[str] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        await release.wait()
        events.append("call ended")
        return request

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        await asyncio.Event().wait()

    async with (
        # A grace longer than any test may last: draining can only end without it.
        serving(Echo(say, count), grace_s=300.0) as (address, server),
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != SERVING:
            pass
        stream = EchoStub(channel).Count(StringValue(value="1"))
        await stream.read()
        running = asyncio.ensure_future(EchoStub(channel).Say(StringValue(value="late")))
        await begun.wait()

        draining = asyncio.create_task(server.drain())
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as watch_ended:
            await watch.read()
        assert watch_ended.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as stream_ended:
            await stream.read()
        refusal = from_rpc_error(stream_ended.value)
        assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "REPLICA_STOPPING")
        assert refusal.retry_after_s is not None
        assert not draining.done()
        release.set()
        assert (await running).value == "late"
        await draining
        events.append("drained")
    assert events == ["call ended", "drained"]


async def test_drain_returns_after_the_clean_up_of_what_the_grace_cut_off() -> None:
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

    async with (
        serving(Echo(say), grace_s=0.05) as (address, server),
        grpc.aio.insecure_channel(address) as channel,
    ):
        running = asyncio.ensure_future(EchoStub(channel).Say(StringValue()))
        await begun.wait()
        await server.drain()
        events.append("drained")
        with pytest.raises(grpc.aio.AioRpcError):
            await running
    assert events == ["cleaned up", "drained"]


async def test_during_the_drain_delay_calls_are_still_served() -> None:
    async with (
        serving(drain_delay_s=300.0) as (address, server),
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != SERVING:
            pass
        draining = asyncio.create_task(server.drain())
        assert (await watch.read()).status == NOT_SERVING
        assert (await EchoStub(channel).Say(StringValue(value="served"))).value == "served"
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining
        server._settings = settings(drain_delay_s=0.0)


async def test_a_passed_probe_after_the_drain_began_changes_nothing() -> None:
    probe = Probe()
    async with (
        serving(ready=probe) as (address, server),
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != SERVING:
            pass
        server.health.drain()
        for reason in ("gone", "", "gone", ""):
            probe.reason = reason
            # The first may have begun before the reason changed; when a third begins, what the
            # second said has been taken in.
            await probe.begun(3)
            assert not server.health.ready


async def test_a_probe_that_is_cancelled_from_within_is_a_refusal_and_no_end() -> None:
    """As by a driver whose future was cancelled: asked to end was nobody."""
    lost: asyncio.Future[None] | None = None

    async def ready() -> None:
        if lost is not None:
            await lost

    async with (
        serving(ready=ready) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != SERVING:
            pass
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        assert (await watch.read()).status == NOT_SERVING
        lost = None
        assert (await watch.read()).status == SERVING


class Unspeakable(Exception):  # noqa: N818 - no fault that there could be
    def __str__(self) -> str:
        raise ValueError("no words")


async def test_an_end_of_the_probing_ends_the_server() -> None:
    """Else health would say for ever what it said last."""

    async def ready() -> None:
        raise Unspeakable

    async with serving(ready=ready) as (_, server):
        with pytest.raises(ValueError, match="no words"):
            await server.ended()
        server._probing = None


async def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    async with serving() as (address, _):
        second = GrpcServer(settings(bind=address), ready=always_ready)
        second.mount(add, Echo(), NAME)
        with pytest.raises(PortTaken) as caught:
            await second.start()
        told = f"TALLY_ECHO_BIND: cannot listen on {address}: Address already in use"
        assert str(caught.value) == told


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid"])
async def test_an_address_that_is_not_ours_is_told_as_such(host: str) -> None:
    server = GrpcServer(settings(bind=f"{host}:50051"), ready=always_ready)
    server.mount(add, Echo(), NAME)
    with pytest.raises(PortTaken, match=f"cannot listen on {host}:50051: ") as caught:
        await server.start()
    assert "in use" not in str(caught.value)


async def services_told(channel: grpc.aio.Channel, method: str) -> set[str]:
    ask: Any = channel.stream_stream(
        method,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return {service.name for service in (await call.read()).list_services_response.service}


async def test_reflection_lists_the_services_in_both_versions() -> None:
    server = GrpcServer(settings(reflection=True), ready=always_ready)

    methods = ("ChargeBalance", "DeductBalance", "RefundDeduction", "GetBalance")
    answering = dict.fromkeys((*methods, "ListLedgerEntries"), Echo.Say)
    servicer = type("Balances", (balance_pb2_grpc.BalanceServiceServicer,), answering)()
    add_balances: Any = balance_pb2_grpc.add_BalanceServiceServicer_to_server
    server.mount(add_balances, servicer, "tally.balance.v1.BalanceService")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        alpha = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        for method in (V1, alpha):
            told = await services_told(channel, method)
            assert {"tally.balance.v1.BalanceService", "grpc.health.v1.Health"} <= told
        stub_type: Any = reflection_pb2_grpc.ServerReflectionStub
        request = reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="tally.balance.v1.BalanceService"
        )
        answer = await stub_type(channel).ServerReflectionInfo(iter([request])).read()
        assert answer.file_descriptor_response.file_descriptor_proto
    await server.drain()


async def test_a_setting_turns_reflection_off() -> None:
    async with (
        serving(reflection=False) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services_told(channel, V1)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
