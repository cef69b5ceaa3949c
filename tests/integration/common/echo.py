"""A small gRPC service of well-known messages, whose methods do what a test gives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from common import deadlines
from common.errors import Code, QuotaViolation, Refusal, RemoteRefusal
from common.rpc.client import ServiceClient
from common.rpc.server import GrpcServer
from common.rpc.status import from_rpc_error
from common.settings import ServiceSettings
from tally_client.rpc.channels import open_channel

NAME = "tally.test.v1.EchoService"
SAY = f"/{NAME}/Say"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class EchoSettings(ServiceSettings):
    service = "echo"


class SoldOut(Refusal):
    """Everything is gone."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "SOLD_OUT"

    quota = (QuotaViolation("campaign:7", "all 10 are issued"),)


@dataclass(frozen=True)
class Received:
    """A call of ``Say`` as it arrived."""

    value: str
    peer: str
    left_s: float
    """The time to its deadline."""


class Echo:
    """Replies with the request, unless the test gives it something else to do."""

    def __init__(self, say: Any = None, count: Any = None) -> None:
        self.received: list[Received] = []
        self._say = say
        self._count = count

    async def Say(self, request: StringValue, context: Any) -> StringValue:  # noqa: N802
        left_s = deadlines.remaining() or 0.0
        self.received.append(Received(request.value, context.peer(), left_s))
        if self._say is None:
            return request
        response: StringValue = await self._say(request, context)
        return response

    async def Count(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:  # noqa: N802
        async for number in self._count(request, context):
            yield number


class Raising(Echo):
    """Raises these errors, one per call, and then replies."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__(self._raise)
        self._left = list(errors)

    async def _raise(self, request: StringValue, context: Any) -> StringValue:
        if self._left:
            raise self._left.pop(0)
        return request


class Held(Echo):
    """``Say`` waits for ``release``; ``Count`` sends one message and waits.

    ``only``: the value with which a request waits. Others get their reply after a moment, so that
    some of many are in flight at any time.
    """

    def __init__(self, only: str = "") -> None:
        super().__init__(self._hold, self._hold_stream)
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self._only = only

    async def _hold(self, request: StringValue, context: Any) -> StringValue:
        if self._only and request.value != self._only:
            await asyncio.sleep(0.01)
            return request
        self.begun.set()
        try:
            await self.release.wait()
        finally:
            self.ended.set()
        return request

    async def _hold_stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield request
            await self.release.wait()
        finally:
            self.ended.set()


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
    """What the generated stub would be, with health beside it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        coding: Any = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.Say: Any = channel.unary_unary(SAY, **coding)
        self.Count: Any = channel.unary_stream(f"/{NAME}/Count", **coding)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def say(self, value: str = "", **options: Any) -> Any:
        return self.Say(StringValue(value=value), **options)

    def count(self, value: str = "", **options: Any) -> Any:
        return self.Count(StringValue(value=value), **options)

    async def check(self, service: str = "") -> int:
        """The health of ``service``, as ``Check`` returns it."""
        request = health_pb2.HealthCheckRequest(service=service)
        return int((await self.health.Check(request, timeout=180)).status)

    def watch(self, service: str = "") -> Watch:
        return Watch(self.health.Watch(health_pb2.HealthCheckRequest(service=service)))


async def always_ready() -> None:
    """The probe of a service that needs nothing."""


class Probe:
    """A readiness probe that fails while the test gives it a problem."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    async def __call__(self) -> None:
        if self.problem:
            raise RuntimeError(self.problem)


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
    server.mount(add, servicer or Echo())
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.drain()


class Connection(EchoStub):
    """A client of one running server."""

    def __init__(self, server: GrpcServer, address: str, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.server = server
        self.address = address
        self.channel = channel


class Watch:
    """A stream of health."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def next(self) -> int:
        return int((await self._call.read()).status)

    async def until(self, status: int) -> None:
        while await self.next() != status:
            pass


@asynccontextmanager
async def connected(servicer: Echo | None = None, **given: Any) -> AsyncIterator[Connection]:
    """A running server and a client of it; arguments as of ``serving``."""
    async with (
        serving(servicer, **given) as (address, server),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Connection(server, address, channel)


@asynccontextmanager
async def client_of(*addresses: str) -> AsyncIterator[ServiceClient[EchoStub]]:
    """The client that services use, of all these replicas."""
    async with ServiceClient(open_channel(",".join(addresses)), EchoStub) as client:
        yield client


async def refusal_of(call: Awaitable[object]) -> RemoteRefusal:
    """The refusal of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)
