"""Responses that a client does not read: their bytes are limited, and other calls are served."""

from __future__ import annotations

import ipaddress
from typing import Final

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import Overloaded
from common.rpc import unsent
from common.rpc.client_address import FORWARDED_FOR
from tests.integration.common.echo import SAY, Connection, connected, refusal_of
from tests.support.http2 import (
    END_HEADERS,
    HEADERS,
    READS_NOTHING,
    RawConnection,
    call_headers,
    message,
    raw_connection,
)
from tests.support.payments import until

PAGE: Final = "x" * 40_000
PROXIES: Final = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pages of a client may wait."""
    monkeypatch.setattr(unsent, "UNSENT_BYTES_MAX", 250_000)


async def ask(raw: RawConnection, stream: int) -> None:
    """Ask for a page; the client has not to read it."""
    raw.send(HEADERS, END_HEADERS, stream, call_headers(SAY))
    content = message(StringValue(value=PAGE).SerializeToString())
    await raw.upload(range(stream, stream + 1), content)


async def test_pages_beyond_the_limit_are_refused_until_others_are_taken() -> None:
    async with connected(trusted_proxies=PROXIES) as client:
        async with raw_connection(client.address, READS_NOTHING) as raw:
            for stream in (1, 3, 5):
                await ask(raw, stream)
            assert await raw.end_of(5) == [Overloaded().message]
            assert (await refusal_of(client.say(PAGE))).reason == "OVERLOADED"
            assert (await client.say("small")).value == "small"
            # Another client, named by a proxy: those of these tests have one address.
            other = ((FORWARDED_FOR, "203.0.113.7"),)
            assert (await client.say(PAGE, metadata=other)).value == PAGE
        await until(lambda: served(client))


async def test_a_write_is_never_refused_after_it_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsent, "_is_read", lambda _method: False)
    async with connected() as client, raw_connection(client.address, READS_NOTHING) as raw:
        for stream in (1, 3, 5):
            await ask(raw, stream)
        assert (await client.say(PAGE)).value == PAGE


async def served(client: Connection) -> bool:
    """Whether a page is served."""
    try:
        await client.say(PAGE)
    except grpc.aio.AioRpcError:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("/tally.order.v1.ProductService/ListProducts", True),
        ("/tally.balance.v1.BalanceService/BatchWrite", False),
        ("/tally.test.v1.EchoService/Say", True),
    ],
)
def test_a_read_is_told_from_a_write_by_the_contract(method: str, expected: bool) -> None:
    assert unsent._is_read(method) is expected
