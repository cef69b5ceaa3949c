"""The maximum age of connections: clients find new replicas by it, and lose no call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from common.rpc.client import ServiceClient
from tests.integration.common.echo import Echo, EchoStub, client_of, serving
from tests.integration.common.names import Names, name_server

CALLERS = 8
LIMIT_S = 90.0
AGE_S = 0.5


class Old:
    """The old replica's servicer. It records the connections of its calls, in order."""

    def __init__(self) -> None:
        self.connections: list[str] = []
        self.held_by = ""
        self.release = asyncio.Event()
        self.echo = Echo(self._say)

    async def _say(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "hold":
            self.held_by = context.peer()
            await self.release.wait()
        elif context.peer() not in self.connections:
            self.connections.append(context.peer())
        await asyncio.sleep(0.01)  # some calls are in flight whenever a connection ends
        return request


class Client:
    """Calls a name without retries. The name leads to the old replica, later to the new one."""

    def __init__(self, names: Names, old: Old, client: ServiceClient[EchoStub]) -> None:
        self.names = names
        self.old = old
        self.answered_by: list[str] = []
        self.failed: list[grpc.StatusCode] = []
        self._client = client

    async def call(self, value: str) -> str:
        """The name of the replica that answered, or ''."""
        call = self._client.stub.Say(StringValue(value=value), timeout=LIMIT_S)
        try:
            assert (await call).value == value
        except grpc.aio.AioRpcError as error:
            self.failed.append(error.code())
            return ""
        return str(dict(await call.trailing_metadata())["tally-replica"])

    async def calls(self) -> None:
        while True:
            self.answered_by.append(await self.call("anyone"))

    def begun(self) -> bool:
        """Whether some calls were answered and others are held."""
        return bool(self.old.held_by and self.answered_by)

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not met():  # noqa: ASYNC110 - counted by the calls
                await asyncio.sleep(0.01)


@asynccontextmanager
async def client(age_s: float) -> AsyncIterator[Client]:
    """A client of a name with one replica. Another listens on the same port of another address."""
    old = Old()
    async with AsyncExitStack() as stack:
        names = stack.enter_context(name_server("127.0.0.1"))
        address, _ = await stack.enter_async_context(
            serving(old.echo, replica="old", max_connection_age_s=age_s)
        )
        port = int(address.split(":")[1])
        bind = f"127.0.0.2:{port}"
        await stack.enter_async_context(
            serving(replica="new", bind=bind, max_connection_age_s=age_s)
        )
        channel = await stack.enter_async_context(client_of(names.target("echo.test", port)))
        calling = Client(names, old, channel)
        tasks = [asyncio.create_task(calling.calls()) for _ in range(CALLERS)]
        try:
            yield calling
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_finds_a_new_replica_when_its_connections_have_aged() -> None:
    """By DNS, as in Kubernetes. The control is a client whose connections do not age: in the same
    time it stays with the old replica."""
    async with client(AGE_S) as aged, client(3_600) as kept:
        both = (aged, kept)
        held = [asyncio.create_task(each.call("hold")) for each in both for _ in range(CALLERS)]
        for each in both:
            await each.until(each.begun)
            each.names.addresses.append("127.0.0.2")
        await aged.until(lambda: "new" in aged.answered_by)
        for each in both:
            each.names.addresses.remove("127.0.0.1")
        await aged.until(lambda: set(aged.answered_by[-10 * CALLERS :]) == {"new"})
        # The connection of the held calls has aged, and others were opened and closed after it.
        assert aged.old.connections[-1] != aged.old.held_by
        for each in both:
            each.old.release.set()
        assert set(await asyncio.gather(*held)) == {"old"}
        assert (aged.failed, kept.failed) == ([], [])
        assert set(kept.answered_by) == {"old"}
        assert kept.old.connections == [kept.old.held_by]
