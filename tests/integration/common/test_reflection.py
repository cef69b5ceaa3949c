"""Reflection as grpcurl meets it, and as it meets those who send it nonsense."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import grpc
import pytest

from common.errors import Code
from common.rpc import reflection
from common.rpc.status import from_rpc_error
from tests.integration.common.echo import serving

GRPCURL = Path(sys.executable).parent / "grpcurl"


async def grpcurl(address: str, *arguments: str) -> str:
    running = await asyncio.create_subprocess_exec(
        GRPCURL, "-plaintext", address, *arguments, stdout=PIPE, stderr=PIPE
    )
    output, errors = await running.communicate()
    assert running.returncode == 0, errors
    return output.decode()


async def test_all_that_is_listed_is_described() -> None:
    async with serving(reflection=True) as (address, _):
        listed = (await grpcurl(address, "list")).split()
        assert set(reflection.NAMES) < set(listed)
        for name in {*listed} - {"tally.test.v1.EchoService"}:
            told = await grpcurl(address, "describe", name)
            assert told.startswith(f"{name} is a service:")


def asked_of(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.stream_stream(f"/{name}/{reflection.METHOD}")()


@pytest.mark.parametrize("name", reflection.NAMES)
async def test_what_is_no_message_is_refused_as_everywhere(name: str) -> None:
    async with (
        serving(reflection=True) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = asked_of(channel, name)
        await call.write(b"\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    refusal = from_rpc_error(caught.value)
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.parametrize("name", reflection.NAMES)
async def test_a_drain_ends_whoever_still_asks(name: str) -> None:
    # A grace longer than any test may last: draining can only end without it.
    async with (
        serving(reflection=True, grace_s=300.0) as (address, server),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = asked_of(channel, name)
        await call.write(b":\x00")  # list_services: ""
        assert await call.read()
        await server.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert from_rpc_error(caught.value).reason == "REPLICA_STOPPING"
