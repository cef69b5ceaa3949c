"""Open streams of one client: of a user few, of an address to a public method its share."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any, Final
from unittest import mock

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.identity.caller import Caller, Kind
from common.rpc import server, stream_shares
from common.rpc.client_address import FORWARDED_FOR
from common.rpc.guard import Admitted
from tests.integration.common.echo import Connection, Held, connected, refusal_of
from tests.support.payments import until

SLOTS: Final = 5
USERS_MOST: Final = 2


class Admits:
    """A guard that admits whom the request names, such as ``USER ann``; nobody: a public call."""

    def of(self, *_given: object) -> Admits:
        return self

    def admit(self, raw: bytes, _context: object, _metadata: object = None) -> Admitted:
        request = StringValue.FromString(raw)
        kind, _, subject = request.value.partition(" ")
        caller = Caller(Kind(kind), subject, math.inf) if kind else None
        return Admitted(request, caller, None)


@asynccontextmanager
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    """A server with identity and five places for streams, behind a proxy."""
    identity = mock.AsyncMock(guard=Admits(), check_ready=mock.Mock())
    monkeypatch.setattr(server, "_identity", lambda _settings, _addresses: identity)
    monkeypatch.setattr(stream_shares, "USER_STREAMS_MAX", USERS_MOST)
    proxies = (ip_network("127.0.0.0/8"),)
    async with connected(Held(), max_concurrent_calls=SLOTS, trusted_proxies=proxies) as client:
        await client.watch().until(1)
        yield client


async def opened(client: Connection, caller: str, address: str) -> Any:
    """A stream of this caller from this address, or of the proxy itself."""
    stream = client.count(caller, metadata=((FORWARDED_FOR, address),) if address else ())
    await stream.read()
    return stream


@pytest.mark.parametrize(
    ("first", "most", "reason", "other"),
    [
        (("USER ann", ""), USERS_MOST, "RATE_LIMITED", ("USER bob", "")),
        (("", "203.0.113.7"), 2, "OVERLOADED", ("", "203.0.113.8")),
        (("SERVICE gateway", ""), SLOTS, "OVERLOADED", None),
        (("OPERATOR olga", ""), SLOTS, "OVERLOADED", None),
        (("", ""), SLOTS, "OVERLOADED", None),
    ],
    ids=["user", "public", "service", "operator", "proxy-for-nobody"],
)
async def test_one_client_leaves_streams_to_others(
    first: tuple[str, str],
    most: int,
    reason: str,
    other: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may open another one when one of its own has ended."""
    async with watched(monkeypatch) as client:
        streams = [await opened(client, *first) for _ in range(most)]
        refusal = await refusal_of(opened(client, *first))
        assert refusal.reason == reason
        assert refusal.retry_after_s
        if other is not None:
            (await opened(client, *other)).cancel()
        streams[0].cancel()
        await until(lambda: is_opened(client, *first))


async def is_opened(client: Connection, caller: str, address: str) -> bool:
    """Whether the place of the stream that has ended is free."""
    try:
        await opened(client, caller, address)
    except grpc.aio.AioRpcError:
        return False
    return True
