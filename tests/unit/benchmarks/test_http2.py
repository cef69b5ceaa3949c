"""The load generator's HTTP/2 connection, against a server of grpc.aio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from benchmarks.load.clients import clients
from benchmarks.load.http2 import CallError, Connection
from benchmarks.load.loop import closed_loop, fixed_rate


class _Handlers(grpc.GenericRpcHandler):
    """Echoes; `Refuse` refuses, `Hang` never answers."""

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def refuse(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many: 100 %")
        return b""

    async def hang(self, request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        methods = {"/it/Echo": self.echo, "/it/Refuse": self.refuse, "/it/Hang": self.hang}
        method = methods.get(details.method)
        return method and grpc.unary_unary_rpc_method_handler(method)


@pytest.fixture
async def server() -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    running = grpc.aio.server()
    running.add_generic_rpc_handlers((_Handlers(),))
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    yield running, f"127.0.0.1:{port}"
    await running.stop(None)


@pytest.fixture
async def connection(server: tuple[grpc.aio.Server, str]) -> AsyncIterator[Connection]:
    opened = await Connection.open(server[1])
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 70_000, 1_000_000])
async def test_messages_of_every_size_are_echoed(connection: Connection, size: int) -> None:
    messages = [os.urandom(size) for _ in range(3)]
    assert await asyncio.gather(*(connection.call("/it/Echo", m) for m in messages)) == messages


async def test_many_calls_at_once_on_several_methods(connection: Connection) -> None:
    messages = [str(number).encode() * (number % 50) for number in range(600)]
    calls = [connection.call("/it/Echo", message) for message in messages]
    refused = [connection.call("/it/Refuse", b"") for _ in range(10)]
    assert await asyncio.gather(*calls) == messages
    outcomes = await asyncio.gather(*refused, return_exceptions=True)
    assert all(isinstance(outcome, CallError) for outcome in outcomes)


async def test_status_other_than_ok_is_an_error(connection: Connection) -> None:
    with pytest.raises(CallError) as refused:
        await connection.call("/it/Refuse", b"")
    assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    with pytest.raises(CallError) as unknown:
        await connection.call("/it/Nothing", b"")
    assert unknown.value.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_calls_under_way_fail_when_the_server_ends(
    server: tuple[grpc.aio.Server, str], connection: Connection
) -> None:
    await connection.call("/it/Echo", b"connected")
    hanging = connection.call("/it/Hang", b"")
    await asyncio.sleep(0)
    await server[0].stop(None)
    with pytest.raises(CallError):
        await hanging
    with pytest.raises(CallError):
        await connection.call("/it/Echo", b"")


@pytest.mark.parametrize("kind", ["grpc", "http2"])
async def test_both_clients_report_what_failed(
    server: tuple[grpc.aio.Server, str], kind: Any
) -> None:
    numbers = iter(range(10**6))
    async with clients(kind, {"it": [server[1]]}) as connected:

        async def step() -> None:
            await connected.call("it", "/it/Refuse" if next(numbers) % 4 == 3 else "/it/Echo", b"")

        for sample in (
            await closed_loop(step, callers=4, seconds=0.05),
            await fixed_rate(step, per_second=400, seconds=0.1),
        ):
            assert sample.done > 0
            assert set(sample.failed) == {"status 8: too many: 100 %"}
            assert sample.failed.total() > 0
