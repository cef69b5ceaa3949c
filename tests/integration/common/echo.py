"""A tiny gRPC service, built from well-known messages, whose methods do what a test hands them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from pydantic import SecretStr

from common.rpc.server import GrpcServer
from common.service import Application, Mounted
from common.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NAME = "tally.test.v1.EchoService"
SAY = f"/{NAME}/Say"


class EchoSettings(ServiceSettings):
    service = "echo"


class Echo:
    """Answers with what it was told, unless the test gives it something else to do."""

    def __init__(self, say: Any = None, count: Any = None) -> None:
        self._say = say
        self._count = count

    async def Say(self, request: StringValue, context: Any) -> StringValue:  # noqa: N802
        if self._say is None:
            return request
        answer: StringValue = await self._say(request, context)
        return answer

    async def Count(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:  # noqa: N802
        async for number in self._count(request, context):
            yield number


def add(servicer: Any, server: Any) -> None:
    """What the generated ``add_EchoServiceServicer_to_server`` would be."""
    coding: Any = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers: dict[str, Any] = {
        "Say": grpc.unary_unary_rpc_method_handler(servicer.Say, **coding),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.Count, **coding),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    server.add_registered_method_handlers(NAME, handlers)


class EchoStub:
    """What the generated stub would be."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        coding: Any = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.Say: Any = channel.unary_unary(SAY, **coding)
        self.Count: Any = channel.unary_stream(f"/{NAME}/Count", **coding)


async def always_ready() -> None:
    """A service that needs nothing is always ready."""


def settings(**given: Any) -> EchoSettings:
    return EchoSettings(
        **{
            "bind": "127.0.0.1:0",
            "replica": "one",
            "database_url": SecretStr(""),
            "readiness_interval_s": 0.01,
            "grace_s": 5.0,
            **given,
        }
    )


@asynccontextmanager
async def serving(
    servicer: Echo | None = None,
    *,
    ready: Callable[[], Awaitable[None]] = always_ready,
    **given: Any,
) -> AsyncIterator[tuple[str, GrpcServer]]:
    """A running server and its address; drained at the end unless the test did so."""
    server = GrpcServer(settings(**given), ready=ready)
    server.mount(add, servicer or Echo(), NAME)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.drain()


def application(servicer: Echo) -> Application:
    return Application(services=[Mounted(add, servicer, NAME)], ready=always_ready)
