"""Reflection as grpcurl uses it, with malformed requests, and during a drain."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from common.errors import Code
from common.rpc import reflection
from common.rpc.server import GrpcServer
from tally.balance.v1 import balance_pb2, balance_pb2_grpc
from tests.integration.common.echo import Echo, always_ready, connected, refusal_of, settings

GRPCURL = Path(sys.executable).parent / "grpcurl"
BALANCE = "tally.balance.v1.BalanceService"
every_version = pytest.mark.parametrize("name", reflection.NAMES)


async def grpcurl(address: str, *arguments: str) -> str:
    running = await asyncio.create_subprocess_exec(
        GRPCURL, "-plaintext", address, *arguments, stdout=PIPE, stderr=PIPE
    )
    output, errors = await running.communicate()
    assert running.returncode == 0, errors
    return output.decode()


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


async def test_every_listed_service_is_described() -> None:
    async with connected(reflection=True) as client:
        listed = (await grpcurl(client.address, "list")).split()
        assert set(reflection.NAMES) < set(listed)
        for name in {*listed} - {"tally.test.v1.EchoService"}:
            description = await grpcurl(client.address, "describe", name)
            assert description.startswith(f"{name} is a service:")


async def test_reflection_lists_the_services_in_both_versions() -> None:
    server = GrpcServer(settings(reflection=True), ready=always_ready)
    described = balance_pb2.DESCRIPTOR.services_by_name["BalanceService"]
    implemented = dict.fromkeys((method.name for method in described.methods), Echo.Say)
    servicer = type("Balances", (balance_pb2_grpc.BalanceServiceServicer,), implemented)()
    add: Any = balance_pb2_grpc.add_BalanceServiceServicer_to_server
    server.mount(add, servicer)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in reflection.NAMES:
            assert {BALANCE, "grpc.health.v1.Health"} <= await services_of(channel, name)
            response = await ask(channel, name, file_containing_symbol=BALANCE)
            assert response.file_descriptor_response.file_descriptor_proto
    await server.drain()


async def test_a_setting_turns_reflection_off() -> None:
    async with connected(reflection=False) as client:
        refusal = await refusal_of(services_of(client.channel, reflection.V1))
        assert refusal.code is Code.UNIMPLEMENTED


@every_version
async def test_a_malformed_request_is_an_invalid_field(name: str) -> None:
    async with connected(reflection=True) as client:
        call = call_of(client.channel, name)
        await call.write(b"\xff")
        refusal = await refusal_of(call.read())
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")


@every_version
async def test_a_drain_ends_open_reflection_calls(name: str) -> None:
    # A grace longer than any test: draining can only end without it.
    async with connected(reflection=True, grace_s=300.0) as client:
        call = call_of(client.channel, name)
        await call.write(b":\x00")  # list_services: ""
        assert await call.read()
        await client.server.drain()
        assert (await refusal_of(call.read())).reason == "REPLICA_STOPPING"
