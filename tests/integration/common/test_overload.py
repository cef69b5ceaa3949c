"""Ten thousand calls above a replica's limit: each is refused, at little cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import Code, RemoteRefusal
from common.rpc.status import from_rpc_error
from tests.integration.common.echo import SERVING, EchoStub
from tests.integration.start.process import Service, process

SLOTS = 50
ABOVE = 10_000
SEVERAL = 8
LIMIT_S = 180.0
MESSAGE_BYTES = 16 * 1024
GROWTH_BYTES_MAX = 176 * 2**20
"""A call that waits to be refused costs its message and about 12 KiB of gRPC's own. A connection
may have a few calls more than the replica has slots; the others wait at their client. Measured:
45 MiB over one connection and 90 over SEVERAL; without that limit 260 over either."""


class Replica:
    """The echo service as a process, and a connection to it of its own."""

    def __init__(self, running: Service, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.stub = EchoStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self._status = Path(f"/proc/{running.process.pid}/status")

    def memory(self, kind: str) -> int:
        """Bytes resident now (``VmRSS``), or the maximum so far (``VmHWM``)."""
        [line] = [line for line in self._status.read_text().splitlines() if line.startswith(kind)]
        return int(line.split()[1]) * 1024

    async def held(self) -> int:
        call = self.stub.Count(StringValue(value="how many"))
        [answer] = [answer async for answer in call]
        return int(answer.value)

    async def release(self) -> None:
        assert [answer async for answer in self.stub.Count(StringValue(value="release"))]


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own: channels of one process would share it."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=own) as channel:
        yield channel


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    environment = {
        "TALLY_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d",
        "TALLY_MAX_CONCURRENT_CALLS": str(SLOTS),
    }
    async with process("tests.integration.common.echo_process", **environment) as running:
        address = f"127.0.0.1:{(await running.line('listening'))['port']}"
        await running.line("ready")
        async with connection(address) as channel:
            yield Replica(running, address, channel)


@asynccontextmanager
async def full(replica: Replica) -> AsyncIterator[None]:
    """A block with every slot taken. Those calls are all answered at its end."""
    taken = [
        asyncio.ensure_future(replica.stub.Say(StringValue(value="hold"), timeout=LIMIT_S))
        for _ in range(SLOTS)
    ]
    while await replica.held() < SLOTS:  # noqa: ASYNC110 - seen from outside only
        await asyncio.sleep(0.01)
    yield
    await replica.release()
    assert [answer.value for answer in await asyncio.gather(*taken)] == ["hold"] * SLOTS


async def refusal_of(stub: EchoStub, message: StringValue) -> RemoteRefusal | None:
    try:
        await stub.Say(message, timeout=LIMIT_S)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def flood(replica: Replica, connections: int) -> list[RemoteRefusal | None]:
    """The ends of ABOVE calls, all sent at once over this many connections."""
    message = StringValue(value="x" * MESSAGE_BYTES)
    async with AsyncExitStack() as stack:
        opened = [connection(replica.address) for _ in range(connections)]
        stubs = [EchoStub(await stack.enter_async_context(channel)) for channel in opened]
        calls = (refusal_of(stubs[number % connections], message) for number in range(ABOVE))
        return await asyncio.gather(*calls)


async def probe(replica: Replica, until: asyncio.Event) -> int:
    """Check the replica's health again and again; return how often."""
    checks = 0
    while not until.is_set():
        for name in ("", "liveness"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (await replica.health.Check(request, timeout=LIMIT_S)).status == SERVING
        checks += 1
    return checks


@pytest.mark.timeout(300)
@pytest.mark.parametrize("connections", [1, SEVERAL])
async def test_calls_above_the_limit_are_refused_and_those_within_it_served(
    replica: Replica, connections: int
) -> None:
    """Ten thousand at once, over one connection or several. Health is served meanwhile."""
    async with full(replica):
        before = replica.memory("VmRSS")
        over = asyncio.Event()
        probing = asyncio.create_task(probe(replica, over))
        refusals = await flood(replica, connections)
        over.set()
        assert await probing > 1
        growth = replica.memory("VmHWM") - before
    assert len(refusals) == ABOVE
    kinds = {
        refusal and (refusal.code, refusal.reason, refusal.retry_after_s) for refusal in refusals
    }
    assert kinds == {(Code.RESOURCE_EXHAUSTED, "OVERLOADED", 0.5)}
    assert growth < GROWTH_BYTES_MAX
    answer = await replica.stub.Say(StringValue(value="afterwards"), timeout=LIMIT_S)
    assert answer.value == "afterwards"
