"""Replicas of a service in the test's own process: real server, real port, real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.rpc.server import GrpcServer
from common.service import Application
from common.settings import ServiceSettings
from tally_client.rpc.channels import open_channel
from tests.support.time_limits import LONG_S, long_limits

S = TypeVar("S", bound=ServiceSettings)
Build: TypeAlias = Callable[[S], AbstractAsyncContextManager[Application]]


@asynccontextmanager
async def replica(settings: S, build: Build[S]) -> AsyncIterator[str]:
    """One replica that serves, without short time limits; yields its address."""
    with long_limits():
        async with build(settings) as application:
            server = GrpcServer(settings, ready=application.ready)
            for add, servicer in application.services:
                server.mount(add, servicer)
            address = f"127.0.0.1:{await server.start()}"
            try:
                await healthy(address)
                yield address
            finally:
                await server.drain()


async def healthy(address: str) -> None:
    """Wait until the server at ``address`` is ready."""
    async with asyncio.timeout(LONG_S), grpc.aio.insecure_channel(address) as opened:
        stub: Any = health_pb2_grpc.HealthStub(opened)
        while True:
            response = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def replicas(
    count: int, settings_type: type[S], build: Build[S], **settings: Any
) -> AsyncIterator[list[str]]:
    """``count`` replicas of one service on one database; yields their addresses."""
    settings = {
        "bind": "127.0.0.1:0",
        "default_deadline_s": LONG_S,
        "grace_s": 1.0,
        "readiness_interval_s": 0.2,
        **settings,
    }
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                replica(settings_type(**settings, replica=f"replica-{number}"), build)
            )
            for number in range(count)
        ]


@asynccontextmanager
async def channel(*addresses: str) -> AsyncIterator[grpc.aio.Channel]:
    """A client's channel to these replicas, in turns."""
    opened = open_channel(",".join(addresses))
    try:
        yield opened
    finally:
        await opened.close()
