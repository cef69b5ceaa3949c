"""Health, drain, the calls of a connection, and addresses on which a server cannot listen."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2

from common.errors import Code
from common.rpc import reflection
from common.rpc.health import Health
from common.rpc.server import (
    OWN_FILES,
    PROBE_CONNECTIONS_MAX,
    GrpcServer,
    PortTaken,
    _options,
    connections_max,
)
from tests.integration.common.echo import (
    NOT_SERVING,
    SERVING,
    Echo,
    EchoStub,
    Held,
    Probe,
    add,
    always_ready,
    connected,
    refusal_of,
    serving,
    settings,
)
from tests.integration.common.test_reflection import call_of

List: Any = health_pb2.HealthListRequest  # type: ignore[attr-defined]  # newer than its stubs


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
        listed = (await client.health.List(List())).statuses
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

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        called.append(request.value)
        yield request

    echo = Echo(count=count)
    async with connected(echo, ready=probe) as client:
        for call in (client.say("early"), client.count("early").read()):
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "REPLICA_NOT_READY")
            assert refusal.retry_after_s
            assert "database" not in refusal.message
        watch = client.watch()
        assert await watch.next() == NOT_SERVING
        probe.problem = ""
        assert await watch.next() == SERVING
        await client.say("served")
        # Later the methods report what they lack: reads may still be possible.
        probe.problem = "the database is gone"
        assert await watch.next() == NOT_SERVING
        await client.say("still served")
    assert called == []
    assert [call.value for call in echo.received] == ["served", "still served"]


async def test_the_health_of_an_unknown_service_is_not_found() -> None:
    async with connected() as client:
        assert (await refusal_of(client.check("unknown"))).code is Code.NOT_FOUND
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert await client.watch("unknown").next() == unknown


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
    held = Held()
    # A grace longer than any test: draining can only end without it.
    async with connected(held, grace_s=300.0, reflection=True) as client:
        watch = client.watch()
        await watch.until(SERVING)
        listings = [call_of(client.channel, version) for version in reflection.NAMES]
        for listing in listings:
            await listing.write(b":\x00")  # list_services: ""
        streams = [client.count("1"), *listings]
        for stream in streams:
            await stream.read()
        running = asyncio.ensure_future(client.say("late"))
        await held.begun.wait()

        draining = asyncio.create_task(client.server.drain())
        assert await watch.next() == NOT_SERVING
        for ended in (watch.next(), *(stream.read() for stream in streams)):
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
        running = asyncio.ensure_future(client.say())
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
        assert (await client.say("served")).value == "served"
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining
        client.server._settings = settings(drain_delay_s=0.0)


@pytest.mark.parametrize(
    ("probes", "readiness"),
    [
        pytest.param("xx.", "xx.", id="start"),
        pytest.param(".x.xx.", "......", id="short-pauses-of-the-database"),
        pytest.param(".xx.xxx", "......x", id="several-in-a-row"),
        pytest.param(".xxxx.xx.", "...xx....", id="one-success-is-enough"),
    ],
)
async def test_only_several_failed_probes_in_a_row_take_a_replica_out(
    probes: str, readiness: str
) -> None:
    """x: the probe fails, or the replica is not ready after it."""
    health, left, seen = Health(), list(probes), ""
    ended = asyncio.Event()

    async def ready() -> None:
        nonlocal seen
        if len(left) < len(probes):
            seen += "." if health.ready else "x"
        if not left:
            ended.set()
            await asyncio.Event().wait()
        if left.pop(0) == "x":
            raise RuntimeError("gone")

    following = asyncio.create_task(health.follow(ready, 0.0))
    await ended.wait()
    following.cancel()
    assert seen == readiness


async def test_a_probe_that_passes_during_the_drain_changes_nothing() -> None:
    health = Health()
    health.drain()
    seen: list[bool] = []

    async def ready() -> None:
        seen.append(health.ready)
        if len(seen) % 2:
            raise RuntimeError("gone")

    following = asyncio.create_task(health.follow(ready, 0.0))
    while len(seen) < 6:  # noqa: ASYNC110 - counted by the probes
        await asyncio.sleep(0)
    following.cancel()
    assert not any(seen)


# -- the calls of one connection -------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "expected"), [(1, 100), (50, 150)])
def test_the_open_calls_of_a_connection_are_limited(slots: int, expected: int) -> None:
    """Also those whose message is not complete, which have no slot yet."""
    options = dict(_options(settings(max_concurrent_calls=slots), 1))
    assert options["grpc.max_concurrent_streams"] == expected


@pytest.mark.parametrize(
    ("files", "ports", "expected"),
    [
        (resource.RLIM_INFINITY, (), 500),
        (10_000, (), 500),
        (300, (), 300 - OWN_FILES),
        (300, ("peer_bind",), (300 - OWN_FILES) // 2),
        (300, ("probe_bind",), 300 - OWN_FILES - PROBE_CONNECTIONS_MAX),
        (300, ("peer_bind", "probe_bind"), (300 - OWN_FILES - PROBE_CONNECTIONS_MAX) // 2),
        (10, (), 1),
    ],
)
def test_connections_leave_files_to_the_replica(
    files: int, ports: tuple[str, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (files, files))
    """Of those that the ports accept in all."""
    given = settings(max_connections=500).model_copy(update=dict.fromkeys(ports, "127.0.0.1:0"))
    assert connections_max(given) == expected


async def test_the_port_of_probes_has_streams_of_health_of_its_own() -> None:
    """A client of the other port gets no more of them than its share."""
    async with connected(max_connections=5, probe_bind="127.0.0.1:0") as client:
        watches = [client.watch() for _ in range(2)]
        for each in watches:
            await each.until(SERVING)
        assert (await refusal_of(client.watch().next())).reason == "OVERLOADED"
        probes = f"127.0.0.1:{client.server.ports['probe_bind']}"
        async with grpc.aio.insecure_channel(probes) as channel:
            await EchoStub(channel).watch().until(SERVING)


# -- the address -----------------------------------------------------------------------------------


def resolve(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """Give these hosts these addresses."""
    original = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        addresses = names.get(host, [host])
        return [found for each in addresses for found in original(each, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("bind", "problem"),
    [
        pytest.param("127.0.0.4:{taken}", "Address already in use", id="taken"),
        # Clients of one address would reach the process that holds the port on the other.
        pytest.param("two.test:{taken}", "Address already in use", id="taken on one of two"),
        pytest.param("203.0.113.7:50051", "Cannot assign requested address", id="elsewhere"),
        pytest.param("nowhere.invalid:50051", "", id="unknown name"),
    ],
)
async def test_an_address_that_is_not_free_is_reported_in_one_line(
    bind: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"two.test": ["127.0.0.3", "127.0.0.4"]})
    with socket.create_server(("127.0.0.4", 0)) as holder:
        address = bind.format(taken=holder.getsockname()[1])
        server = GrpcServer(settings(bind=address), ready=always_ready)
        server.mount(add, Echo())
        with pytest.raises(PortTaken) as caught:
            await server.start()
    text = str(caught.value)
    assert text.startswith(f"TALLY_ECHO_BIND: cannot listen on {address}: {problem}")
    assert ("in use" in text) is ("in use" in problem)
    assert "\n" not in text


async def test_a_second_server_on_the_port_does_not_bind_silently() -> None:
    """As one with gRPC's default options would on the port of another such server."""
    second = grpc.aio.server()
    async with serving() as (address, _):
        with pytest.raises(RuntimeError):
            second.add_insecure_port(address)
    await second.stop(None)


async def test_an_address_that_this_machine_does_not_have_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`localhost` has ::1 in many containers without IPv6."""
    resolve(monkeypatch, {"127.0.0.1": ["203.0.113.7", "127.0.0.1"]})
    async with connected() as client:
        assert (await client.say("here")).value == "here"
