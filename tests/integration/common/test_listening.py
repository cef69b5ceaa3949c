"""Where a server listens, and what it lets a connection outlive."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.rpc import server
from common.rpc.server import GrpcServer, PortTaken
from tally_client import policy
from tests.integration.common.echo import NAME, Echo, EchoStub, add, always_ready, serving, settings
from tests.integration.common.test_connections import ACK, SETTINGS, raw_client

MAX_CONCURRENT_STREAMS: Final = 0x3


async def test_a_name_is_listened_on_at_all_of_its_addresses_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `localhost` is where it has two: clients of one would reach whoever holds the other."""
    resolve = socket.getaddrinfo

    def two_addresses(host: str, port: int, **asked: Any) -> Any:
        hosts = ["127.0.0.3", "127.0.0.4"] if host == "two.test" else [host]
        return [found for each in hosts for found in resolve(each, port, **asked)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    with socket.create_server(("127.0.0.4", 0)) as holder:
        bind = f"two.test:{holder.getsockname()[1]}"
        listening = GrpcServer(settings(bind=bind), ready=always_ready)
        listening.mount(add, Echo(), NAME)
        with pytest.raises(PortTaken) as caught:
            await listening.start()
    assert str(caught.value) == f"TALLY_ECHO_BIND: cannot listen on {bind}: Address already in use"


async def test_an_address_of_a_family_that_is_not_there_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`localhost` has ::1 in many a container that has no IPv6."""
    resolve = socket.getaddrinfo

    def also_elsewhere(host: str, port: int, **asked: Any) -> Any:
        found = resolve(host, port, **asked)
        return [*resolve("203.0.113.7", port, **asked), *found]

    monkeypatch.setattr(socket, "getaddrinfo", also_elsewhere)
    async with serving() as (address, _), grpc.aio.insecure_channel(address) as channel:
        assert (await EchoStub(channel).Say(StringValue(value="here"))).value == "here"


async def called_over_an_old_connection(
    monkeypatch: pytest.MonkeyPatch, *, grace_s: float, default_deadline_s: float = 0.1
) -> str:
    """What ends a call that lasts ten times as long as its connection may."""
    monkeypatch.setattr(server, "AGE_GRACE_S", grace_s)

    async def say(request: StringValue, context: Any) -> StringValue:
        await asyncio.sleep(2.0)
        return request

    quick: dict[str, Any] = {"max_connection_age_s": 0.2, "grace_s": 0.1}
    async with (
        serving(Echo(say), default_deadline_s=default_deadline_s, **quick) as (address, _),
        grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        try:
            return str((await EchoStub(channel).Say(StringValue(value="done"), timeout=60)).value)
        except grpc.aio.AioRpcError as error:
            return error.code().name


async def test_the_age_of_a_connection_ends_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    grace_s = server.AGE_GRACE_S
    assert await called_over_an_old_connection(monkeypatch, grace_s=grace_s) == "done"


async def test_nor_one_that_the_server_itself_allows_to_be_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = await called_over_an_old_connection(monkeypatch, grace_s=0.1, default_deadline_s=60)
    assert ended == "done"


async def test_control_without_time_of_its_own_such_a_call_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await called_over_an_old_connection(monkeypatch, grace_s=0.1) == "UNAVAILABLE"


def test_a_connection_outlives_its_age_by_more_than_the_published_time_limits() -> None:
    assert max(policy.TIMEOUTS_S.values()) < server.AGE_GRACE_S


async def streams_at_once(places: int) -> int | None:
    """What the server's SETTINGS allow a connection."""
    async with (
        serving(max_concurrent_calls=places) as (address, _),
        raw_client(address) as client,
    ):
        while True:
            kind, flags, payload = await client.frame()
            if kind == SETTINGS and not flags & ACK:
                pairs = [payload[at : at + 6] for at in range(0, len(payload), 6)]
                told = {int.from_bytes(p[:2], "big"): int.from_bytes(p[2:], "big") for p in pairs}
                return told.get(MAX_CONCURRENT_STREAMS)


async def test_the_calls_of_a_connection_are_bounded_also_before_their_messages_came() -> None:
    assert await streams_at_once(200) == 3 * 200
    assert await streams_at_once(1) == 100


async def test_of_a_flood_of_calls_on_one_connection_none_is_reset() -> None:
    """More at once, again and again, than the connection may have open."""
    async with (
        serving(max_concurrent_calls=50) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = EchoStub(channel)
        message = StringValue(value="x" * 4096)
        for _ in range(4):
            calls = (stub.Say(message, timeout=120) for _ in range(1_500))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            codes = {one.code() for one in answers if isinstance(one, grpc.aio.AioRpcError)}
            # Refused as too many perhaps, but never by a bare UNAVAILABLE.
            assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
