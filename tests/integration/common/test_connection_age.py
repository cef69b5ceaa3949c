"""The age of connections, by which clients find new replicas, and which costs them no call."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from common.rpc.channels import open_channel
from common.rpc.client import ServiceClient
from tests.integration.common.echo import Echo, EchoStub, serving
from tests.integration.common.names import Names, name_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CALLERS = 8
LIMIT_S = 90.0
AGE_S = 0.5


class Old:
    """A replica's servicer that keeps the connections its calls came by, in order."""

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
    """Calls an old replica, whose name may come to mean a new one; repeats nothing."""

    def __init__(self, names: Names, old: Old, peer: ServiceClient[EchoStub]) -> None:
        self.names = names
        self.old = old
        self.answered_by: list[str] = []
        self.failed: list[grpc.StatusCode] = []
        self._peer = peer

    async def call(self, value: str) -> str:
        """The replica that answered, or nothing."""
        call = self._peer.stub.Say(StringValue(value=value), timeout=LIMIT_S)
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
        """Whether calls were answered and others are held."""
        return bool(self.old.held_by and self.answered_by)

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not met():  # noqa: ASYNC110 - counted by the calls
                await asyncio.sleep(0.01)


@asynccontextmanager
async def client(age_s: float) -> AsyncIterator[Client]:
    """A client of a name with one replica, while another waits at the same port elsewhere."""
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
        target = names.target("echo.test", port)
        peer = await stack.enter_async_context(ServiceClient(open_channel(target), EchoStub))
        calling = Client(names, old, peer)
        tasks = [asyncio.create_task(calling.calls()) for _ in range(CALLERS)]
        try:
            yield calling
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_meets_a_new_replica_when_its_connections_have_aged() -> None:
    """By DNS, as in Kubernetes, and by nothing but the age.

    The other client, whose connections hardly age, is the control: in all that time it keeps to
    what it knows.
    """
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
        # Their connection has aged long since, others came and went after it.
        assert aged.old.connections[-1] != aged.old.held_by
        for each in both:
            each.old.release.set()
        assert set(await asyncio.gather(*held)) == {"old"}
        assert (aged.failed, kept.failed) == ([], [])
        assert set(kept.answered_by) == {"old"}
        assert kept.old.connections == [kept.old.held_by]
