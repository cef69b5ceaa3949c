"""Reflection as grpcurl uses it, and with malformed requests."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from common.errors import Code
from common.rpc import reflection
from common.rpc.server import GrpcServer
from tally.balance.v1 import balance_pb2
from tests.integration.common.echo import always_ready, connected, refusal_of, settings

BALANCE = balance_pb2.DESCRIPTOR.services_by_name["BalanceService"].full_name


def call_of(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.stream_stream(
        f"/{name}/{reflection.METHOD}",
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()


async def ask(channel: grpc.aio.Channel, name: str, **request: str) -> Any:
    call = call_of(channel, name)
    await call.write(reflection_pb2.ServerReflectionRequest(**request).SerializeToString())  # type: ignore[arg-type]
    return await call.read()


async def services_of(channel: grpc.aio.Channel, name: str) -> set[str]:
    response = await ask(channel, name, list_services="")
    return {service.name for service in response.list_services_response.service}


async def test_reflection_lists_the_services_in_both_versions() -> None:
    """And describes each, itself included. README's tour does so with grpcurl."""
    server = GrpcServer(settings(reflection=True), ready=always_ready)
    server.mount(lambda _, mounting: mounting.add_registered_method_handlers(BALANCE, {}), None)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in reflection.NAMES:
            listed = await services_of(channel, name)
            assert listed == {BALANCE, "grpc.health.v1.Health", *reflection.NAMES}
            for service in listed:
                response = await ask(channel, name, file_containing_symbol=service)
                assert response.file_descriptor_response.file_descriptor_proto
    await server.drain()


@pytest.mark.parametrize("name", reflection.NAMES)
async def test_the_file_of_a_method_is_found_by_the_methods_name(name: str) -> None:
    async with connected(reflection=True) as client:
        for symbol, found in (
            (f"{BALANCE}.ChargeBalance", True),
            (BALANCE, True),
            ("tally.balance.v1.Balance.user_id", True),
            (f"{BALANCE}.Charge", False),
            (f"{BALANCE}.", False),
            ("tally.balance.v1.NoService.ChargeBalance", False),
            ("", False),
        ):
            response = await ask(client.channel, name, file_containing_symbol=symbol)
            kind = "file_descriptor_response" if found else "error_response"
            assert response.WhichOneof("message_response") == kind, symbol


async def test_grpcurl_describes_a_method() -> None:
    server = GrpcServer(settings(reflection=True), ready=always_ready)
    server.mount(lambda _, mounting: mounting.add_registered_method_handlers(BALANCE, {}), None)
    port = await server.start()
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("grpcurl"), "-plaintext"),
        *(f"127.0.0.1:{port}", "describe", f"{BALANCE}.ChargeBalance"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    await server.drain()
    assert output.decode().startswith(f"{BALANCE}.ChargeBalance is a method:\n")
    assert "rpc ChargeBalance ( .tally.balance.v1.ChargeBalanceRequest )" in output.decode()


async def test_a_setting_turns_reflection_off() -> None:
    async with connected(reflection=False) as client:
        refusal = await refusal_of(services_of(client.channel, reflection.V1))
        assert refusal.code is Code.UNIMPLEMENTED


@pytest.mark.parametrize("name", reflection.NAMES)
async def test_a_malformed_request_is_an_invalid_field(name: str) -> None:
    async with connected(reflection=True) as client:
        call = call_of(client.channel, name)
        await call.write(b"\xff")
        refusal = await refusal_of(call.read())
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
