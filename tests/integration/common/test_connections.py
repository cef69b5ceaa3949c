"""Connections: pings, and the maximum age, by which clients find new replicas and lose no call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.rpc import server
from tally_client import policy
from tally_client.rpc import channels
from tests.integration.common.callers import Callers
from tests.integration.common.echo import Echo, EchoStub, Held, client_of, serving
from tests.support.cluster import dns
from tests.support.http2 import ENHANCE_YOUR_CALM, PREFACE, raw_connection
from tests.support.waits import until_true

CALLERS = 8
AGE_S = 0.5


# -- pings -----------------------------------------------------------------------------------------

CLIENTS_INTERVAL_S: Final = channels.KEEPALIVE_MS / 1000


@pytest.mark.parametrize(
    ("interval_s", "least_ms", "expected"),
    [
        pytest.param(CLIENTS_INTERVAL_S, server.CLIENT_PING_LEAST_MS, None, id="as-own-clients"),
        pytest.param(CLIENTS_INTERVAL_S, 300_000 * 100, ENHANCE_YOUR_CALM, id="control-default"),
        pytest.param(0.0, server.CLIENT_PING_LEAST_MS, ENHANCE_YOUR_CALM, id="too-often"),
    ],
)
async def test_a_client_may_ping_as_often_as_tallys_own_clients_do(
    interval_s: float, least_ms: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a hundredth of the times. The control is gRPC's own least interval."""
    monkeypatch.setattr(server, "CLIENT_PING_LEAST_MS", least_ms // 100)
    code = None
    async with serving() as (address, _), raw_connection(address) as client:
        for _ in range(8):
            if (code := await client.ping()) is not None:
                break
            await asyncio.sleep(interval_s / 100)
    assert code == expected


# -- number, and beginning ------------------------------------------------------------------------


async def test_connections_above_the_limit_are_closed_and_the_others_served() -> None:
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as exits:
        address, _ = await exits.enter_async_context(serving(max_connections=3))
        channel = await exits.enter_async_context(grpc.aio.insecure_channel(address, options=own))
        assert (await EchoStub(channel).say("first", timeout=60)).value == "first"
        held = [await exits.enter_async_context(raw_connection(address)) for _ in range(2)]
        for each in held:
            assert await each.ping() is None
        async with raw_connection(address) as above:
            await above.closed()
        for each in held:
            assert await each.ping() is None
        assert (await EchoStub(channel).say("served", timeout=60)).value == "served"
        held[0].writer.transport.abort()
        later = await exits.enter_async_context(grpc.aio.insecure_channel(address, options=own))
        reply = await EchoStub(later).say("later", wait_for_ready=True, timeout=60)
        assert reply.value == "later"


@pytest.mark.parametrize("opening", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half", "all"])
async def test_a_connection_that_does_not_begin_in_time_is_closed(
    opening: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is a connection that has begun."""
    monkeypatch.setattr(server, "HANDSHAKE_MS", 1_000)
    async with (
        serving() as (address, _),
        raw_connection(address) as begun,
        raw_connection(address, opening) as other,
    ):
        assert await begun.ping() is None
        await other.closed()
        assert await begun.ping() is None


# -- age -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grace_s", "default_deadline_s", "expected"),
    [
        pytest.param(server.AGE_GRACE_S, 0.1, "done", id="grace"),
        pytest.param(0.1, 60.0, "done", id="longer-default-deadline"),
        pytest.param(0.1, 0.1, "UNAVAILABLE", id="control-without-either"),
    ],
)
async def test_a_call_outlives_the_maximum_age_of_its_connection(
    grace_s: float, default_deadline_s: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ten times. The control has no grace that would allow it."""
    monkeypatch.setattr(server, "AGE_GRACE_S", grace_s)

    async def say(request: StringValue, context: Any) -> StringValue:
        await asyncio.sleep(2.0)
        return request

    given: dict[str, Any] = {"max_connection_age_s": 0.2, "grace_s": 0.1}
    async with (
        serving(Echo(say), default_deadline_s=default_deadline_s, **given) as (address, _),
        grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        try:
            end = str((await EchoStub(channel).say("done", timeout=60)).value)
        except grpc.aio.AioRpcError as error:
            end = error.code().name
    assert end == expected


def test_the_grace_is_longer_than_the_published_time_limits() -> None:
    assert max(policy.TIMEOUTS_S.values()) < server.AGE_GRACE_S


@dataclass
class Named:
    """Callers of a name that leads to the old replica, later to the new one."""

    addresses: list[str]
    """What the name server replies."""
    old: Held
    callers: Callers

    def connections(self, *, held: bool) -> list[str]:
        """The connections of the old replica's calls, held or not, in the order of their first."""
        peers = (each.peer for each in self.old.received if (each.value == "hold") is held)
        return list(dict.fromkeys(peers))


@asynccontextmanager
async def named(age_s: float) -> AsyncIterator[Named]:
    """A name with one replica. Another listens on the same port of another address."""
    old, addresses = Held(only="hold"), ["127.0.0.1"]
    held = dns.bound()
    server = f"127.0.0.1:{held.getsockname()[1]}"
    names = dns.Names(mock.Mock(resolve=lambda _name: addresses))
    async with (
        dns.serving(held, names),
        serving(old, replica="old", max_connection_age_s=age_s) as (address, _),
    ):
        port = address.split(":")[1]
        new = serving(replica="new", bind=f"127.0.0.2:{port}", max_connection_age_s=age_s)
        async with new, client_of(f"dns://{server}/echo.test:{port}") as client:
            callers = Callers(client, CALLERS)
            async with callers.calling():
                yield Named(addresses, old, callers)


async def test_a_client_finds_a_new_replica_when_its_connections_have_aged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By DNS, as in Kubernetes. The control is a client whose connections do not age: in the same
    time it stays with the old replica."""
    monkeypatch.setattr(dns, "TTL_S", 0)
    async with named(AGE_S) as aged, named(3_600) as kept:
        both = (aged, kept)
        held = [
            asyncio.create_task(each.callers.call("hold")) for each in both for _ in range(CALLERS)
        ]
        for each in both:
            await each.old.begun.wait()
            await each.callers.more(1)
            each.addresses.append("127.0.0.2")
        answered_by = aged.callers.answered_by
        await until_true(lambda: "new" in answered_by)
        for each in both:
            each.addresses.remove("127.0.0.1")
        await until_true(lambda: set(answered_by[-10 * CALLERS :]) == {"new"})
        # The connection of the held calls has aged, and others were opened and closed after it.
        assert aged.connections(held=False)[-1] not in aged.connections(held=True)
        before = answered_by.count("old")
        for each in both:
            each.old.release.set()
        await asyncio.gather(*held)
        assert answered_by.count("old") >= before + CALLERS
        assert (aged.callers.failed, kept.callers.failed) == ([], [])
        assert set(kept.callers.answered_by) == {"old"}
        assert kept.connections(held=False) == kept.connections(held=True)
        assert len(kept.connections(held=True)) == 1
