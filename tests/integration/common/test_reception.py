"""Calls whose request does not arrive in whole: few without a time limit, more with one."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import Overloaded
from common.rpc import reception
from common.rpc.client_address import FORWARDED_FOR
from tests.integration.common.echo import (
    SAY,
    SERVING,
    Connection,
    Echo,
    EchoStub,
    connected,
)
from tests.support.http2 import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    RawConnection,
    call_headers,
    message,
    raw_connection,
)
from tests.support.waits import until_true

CONTENT: Final = message(StringValue(value="late").SerializeToString())
CHECK: Final = "/grpc.health.v1.Health/Check"
TOO_LATE: Final = "The request did not arrive in time; nothing was done."
FULL: Final = Overloaded().message
LONG_S: Final = 120.0
OPTIONS: Final[dict[str, Any]] = {
    "probe_bind": "127.0.0.1:0",
    "trusted_proxies": (ipaddress.ip_network("127.0.0.0/8"),),
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request without a time limit, and two of a client with one."""
    monkeypatch.setattr(reception, "UNTIMED_MAX", 1)
    monkeypatch.setattr(reception, "TIMED_MAX", 6)


@asynccontextmanager
async def attacked(
    limit_s: float, calls: int, path: str = SAY
) -> AsyncIterator[tuple[Connection, RawConnection, Echo]]:
    """A server, a client of it, and another one that has sent the beginnings of so many calls."""
    echo = Echo()
    async with (
        connected(echo, default_deadline_s=limit_s, **OPTIONS) as client,
        raw_connection(client.address) as raw,
    ):
        for stream in streams(calls):
            raw.send(HEADERS, END_HEADERS, stream, call_headers(path))
            raw.send(DATA, 0, stream, CONTENT[:-1])
            # The server takes calls in the order in which they arrive.
            await raw.ping()
        yield client, raw, echo


def streams(calls: int) -> range:
    return range(1, 2 * calls, 2)


async def test_a_request_that_does_not_arrive_in_time_is_refused() -> None:
    """But for the first, which gRPC receives."""
    async with attacked(2.0, 3) as (client, raw, echo):
        assert await raw.end_of(3, 5) == [TOO_LATE] * 2
        assert (await client.say("served")).value == "served"
        assert [call.value for call in echo.received] == ["served"]


async def test_requests_that_arrive_late_are_served() -> None:
    async with attacked(LONG_S, 3) as (_, raw, echo):
        for stream in streams(3):
            raw.send(DATA, END_STREAM, stream, CONTENT[-1:])
        assert await raw.end_of(*streams(3)) == [""] * 3
        assert [call.value for call in echo.received] == ["late"] * 3


async def test_many_calls_of_one_client_at_once_are_served() -> None:
    """Their requests have arrived, and the event loop has not read them yet."""
    async with attacked(LONG_S, 3) as (client, _, echo):
        said = await asyncio.gather(*(client.say(str(number)) for number in range(100)))
        assert [one.value for one in said] == [str(number) for number in range(100)]
        assert len(echo.received) == 100


async def test_an_incomplete_request_beyond_both_numbers_is_refused() -> None:
    async with attacked(LONG_S, 4) as (client, raw, _):
        assert await raw.end_of(7) == [FULL]
        assert (await client.say("served")).value == "served", "it is complete"


async def test_another_client_is_served_when_one_has_its_share() -> None:
    """Named by a proxy: the clients of these tests have one address."""
    async with attacked(LONG_S, 4) as (_, raw, echo):
        assert await raw.end_of(7) == [FULL]
        other = (FORWARDED_FOR.encode(), b"203.0.113.7")
        for stream, *named in ((9, other), (11,)):
            raw.send(HEADERS, END_HEADERS, stream, call_headers(SAY, *named))
            raw.send(DATA, 0, stream, CONTENT[:-1])
        assert await raw.end_of(11) == [FULL]
        raw.send(DATA, END_STREAM, 9, CONTENT[-1:])
        assert await raw.end_of(9) == [""]
        assert [call.value for call in echo.received] == ["late"]


async def test_beyond_a_share_of_the_third_number_a_call_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reception, "BEYOND_MAX", 3)
    monkeypatch.setattr(reception, "BEYOND_S", LONG_S)
    async with attacked(LONG_S, 5) as (_, raw, echo):
        assert await raw.end_of(9) == [FULL]
        other = (FORWARDED_FOR.encode(), b"203.0.113.7")
        # One of these has a place with the time limit, and one has a place beyond.
        for stream in (11, 13):
            raw.send(HEADERS, END_HEADERS, stream, call_headers(SAY, other))
            await raw.ping()
        for stream in (7, 11, 13):
            raw.send(DATA, END_STREAM, stream, CONTENT[-1:] if stream == 7 else CONTENT)
        assert await raw.end_of(7, 11, 13) == [""] * 3
        assert [call.value for call in echo.received] == ["late"] * 3


async def test_health_checks_are_limited_too() -> None:
    async with attacked(LONG_S, 4, CHECK) as (client, raw, _):
        assert await raw.end_of(7) == [FULL]
        # Other methods have numbers of their own, and so has the port of probes.
        raw.send(HEADERS, END_HEADERS, 9, call_headers(SAY))
        async with (
            grpc.aio.insecure_channel(probes_of(client)) as channel,
            raw_connection(probes_of(client)) as probes,
        ):
            probes.send(HEADERS, END_HEADERS, 1, call_headers(CHECK))
            await asyncio.sleep(2 * reception.BEYOND_S)
            assert await EchoStub(channel).check() == SERVING
            await raw.ping()
            await probes.ping()
            assert 9 not in raw.ends and not probes.ends


async def test_calls_that_are_given_up_make_room() -> None:
    async with attacked(LONG_S, 3) as (client, raw, _):
        for stream in streams(3):
            raw.send(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))
        places = client.server._handlers._reception
        await until_true(lambda: not places._timed._total)
        # All three are free, also that of the call without a time limit.
        for stream in range(7, 13, 2):
            raw.send(HEADERS, END_HEADERS, stream, call_headers(SAY))
            await raw.ping()
        raw.send(HEADERS, END_HEADERS, 13, call_headers(SAY))
        assert await raw.end_of(13) == [FULL]
        assert not raw.ends.keys() & {7, 9, 11}


def probes_of(client: Connection) -> str:
    """The address of the server's port of probes."""
    return f"127.0.0.1:{client.server.ports['probe_bind']}"
