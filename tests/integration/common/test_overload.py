"""Ten thousand calls more than a replica takes: refused in good order, at little cost to it."""

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
from common.status import from_rpc_error
from tests.integration.common.echo import EchoStub
from tests.integration.start.process import Service, process

PLACES = 50
ABOVE = 10_000
AT_ONCE = 2_500
CHANNELS = 4
LIMIT_S = 90.0
MESSAGE_BYTES = 16 * 1024
GROWTH_BYTES_MAX = 192 * 2**20
"""A call that waits to be refused costs its message and about 12 KiB of gRPC's own: some 70 MiB for
AT_ONCE of them. If refused calls were kept, ABOVE of them would come to 270 MiB."""


class Replica:
    """The echo service as a process, and channels to it."""

    def __init__(self, running: Service, channels: list[grpc.aio.Channel]) -> None:
        self.stubs = [EchoStub(channel) for channel in channels]
        self.health: Any = health_pb2_grpc.HealthStub(channels[0])
        self._status = Path(f"/proc/{running.process.pid}/status")

    def memory(self, kind: str) -> int:
        """Bytes resident now (``VmRSS``) or at most so far (``VmHWM``)."""
        [line] = [line for line in self._status.read_text().splitlines() if line.startswith(kind)]
        return int(line.split()[1]) * 1024

    async def held(self) -> int:
        call = self.stubs[0].Count(StringValue(value="how many"))
        [answer] = [answer async for answer in call]
        return int(answer.value)

    async def release(self) -> None:
        assert [answer async for answer in self.stubs[0].Count(StringValue(value="release"))]


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    environment = {
        "TALLY_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d",
        "TALLY_MAX_CONCURRENT_CALLS": str(PLACES),
    }
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            process("tests.integration.common.echo_process", **environment)
        )
        port = (await running.line("listening"))["port"]
        await running.line("ready")
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(
                    f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
                )
            )
            for _ in range(CHANNELS)
        ]
        yield Replica(running, channels)


@asynccontextmanager
async def full(replica: Replica) -> AsyncIterator[None]:
    """While it lasts, every place is taken; all of those calls are answered at its end."""
    taken = [
        asyncio.ensure_future(replica.stubs[0].Say(StringValue(value="hold"), timeout=LIMIT_S))
        for _ in range(PLACES)
    ]
    while await replica.held() < PLACES:  # noqa: ASYNC110 - seen from outside only
        await asyncio.sleep(0.01)
    yield
    await replica.release()
    assert [answer.value for answer in await asyncio.gather(*taken)] == ["hold"] * PLACES


async def refusal_of(stub: EchoStub, message: StringValue) -> RemoteRefusal | None:
    try:
        await stub.Say(message, timeout=LIMIT_S)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def flood(replica: Replica) -> AsyncIterator[RemoteRefusal | None]:
    """ABOVE calls, as many at once as one test's process can well make."""
    message = StringValue(value="x" * MESSAGE_BYTES)
    for _ in range(ABOVE // AT_ONCE):
        stubs = (replica.stubs[number % CHANNELS] for number in range(AT_ONCE))
        for refusal in await asyncio.gather(*(refusal_of(stub, message) for stub in stubs)):
            yield refusal


async def probe(replica: Replica, until: asyncio.Event) -> int:
    """Asks for the replica's health again and again; how often it was told."""
    told = 0
    while not until.is_set():
        for name in ("", "liveness"):
            asked = health_pb2.HealthCheckRequest(service=name)
            answer = await replica.health.Check(asked, timeout=LIMIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        told += 1
    return told


@pytest.mark.timeout(240)
async def test_ten_thousand_calls_above_the_limit_are_refused_and_those_within_it_served(
    replica: Replica,
) -> None:
    async with full(replica):
        before = replica.memory("VmRSS")
        over = asyncio.Event()
        probing = asyncio.create_task(probe(replica, over))
        refusals = [refusal async for refusal in flood(replica)]
        over.set()
        assert await probing > 1
        growth = replica.memory("VmHWM") - before
    assert len(refusals) == ABOVE
    kinds = {
        refusal and (refusal.code, refusal.reason, refusal.retry_after_s) for refusal in refusals
    }
    assert kinds == {(Code.RESOURCE_EXHAUSTED, "OVERLOADED", 0.5)}
    assert growth < GROWTH_BYTES_MAX
    for stub in replica.stubs:
        answer = await stub.Say(StringValue(value="afterwards"), timeout=LIMIT_S)
        assert answer.value == "afterwards"
