"""The documented proxy limits the connections of an address, which gRPC's server cannot."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.rpc.client_address import FORWARDED_FOR
from tests.integration.common.echo import SAY, Echo, EchoStub, serving
from tests.support import haproxy
from tests.support.certificates import HOST, NAME, Authority, write_certificate
from tests.support.haproxy import HaProxy
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    RawConnection,
    call_headers,
    frame,
    message,
)
from tests.support.payments import until

CONNECTIONS_MAX = 100
"""Of an address, in the proxy's configuration."""
OTHER = "127.0.0.2"
CALL = (
    PREFACE
    + frame(SETTINGS)
    + frame(HEADERS, END_HEADERS, 1, call_headers(SAY))
    + frame(DATA, END_STREAM, 1, message(StringValue(value="other").SerializeToString()))
)
LONG_S = 120.0


class Forwarded(Echo):
    """Records the addresses that the proxy names."""

    def __init__(self) -> None:
        super().__init__(self._say)
        self.named: list[str] = []

    async def _say(self, request: StringValue, context: Any) -> StringValue:
        metadata = context.invocation_metadata()
        self.named += [value for key, value in metadata if key == FORWARDED_FOR]
        return request


async def called(
    port: int, tls: ssl.SSLContext, exits: contextlib.AsyncExitStack
) -> RawConnection | None:
    """A connection from the other address that has made a call; None if it was refused."""
    try:
        reader, writer = await asyncio.open_connection(
            HOST, port, ssl=tls, server_hostname=NAME, local_addr=(OTHER, 0)
        )
        exits.callback(writer.close)
        connection = RawConnection(reader, writer)
        writer.write(CALL)
        assert await connection.end_of(1) == [""]
    except (OSError, asyncio.IncompleteReadError):
        return None
    return connection


@pytest.mark.skipif(haproxy.find() is None, reason="haproxy is not installed")
async def test_an_address_has_so_many_connections_and_others_are_served(tmp_path: Path) -> None:
    authority = Authority()
    directory = write_certificate(tmp_path / "tls", authority)
    tls = ssl.create_default_context(cadata=authority.pem)
    tls.set_alpn_protocols(["h2"])
    echo = Forwarded()
    options: dict[str, Any] = {
        "tls_dir": str(directory),
        "trusted_proxies": (ipaddress.ip_network("127.0.0.0/8"),),
        "max_concurrent_calls": 1024,
    }
    async with contextlib.AsyncExitStack() as exits:
        address, _ = await exits.enter_async_context(serving(echo, **options))
        service_port = int(address.rpartition(":")[2])
        proxy = exits.enter_context(HaProxy(service_port, directory, tmp_path / "haproxy.log"))
        opened = [await called(proxy.port, tls, exits) for _ in range(CONNECTIONS_MAX)]
        assert None not in opened
        assert await called(proxy.port, tls, exits) is None
        credentials = grpc.ssl_channel_credentials(authority.pem.encode())
        async with grpc.aio.secure_channel(f"{HOST}:{proxy.port}", credentials) as channel:
            claims = ((FORWARDED_FOR, "203.0.113.7"),)
            answer = await EchoStub(channel).say("served", metadata=claims, timeout=LONG_S)
        assert answer.value == "served"
        assert echo.named == [OTHER] * CONNECTIONS_MAX + [HOST]
        first = opened[0]
        assert first is not None
        first.writer.close()
        await until(lambda: called(proxy.port, tls, exits))
