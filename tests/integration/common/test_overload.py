"""Ten thousand calls above a replica's limit: each is refused, at little cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from common.errors import Code, RemoteRefusal
from tests.integration.common.echo import SERVING, EchoStub, refusal_of
from tests.integration.common.echo_process import Replica, connection, replica_with

SLOTS = 50
ABOVE = 10_000
SEVERAL = 8
LIMIT_S = 180.0
MESSAGE_BYTES = 16 * 1024
GROWTH_BYTES_MAX = 176 * 2**20
"""A call that waits to be refused costs its message and about 12 KiB of gRPC's own. A connection
may have a few calls more than the replica has slots; the others wait at their client. Measured:
45 MiB over one connection and 90 over SEVERAL; without that limit 260 over either."""


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with replica_with(TALLY_MAX_CONCURRENT_CALLS=str(SLOTS)) as running:
        yield running


@asynccontextmanager
async def full(replica: Replica) -> AsyncIterator[None]:
    """A block with every slot taken. Those calls are all answered at its end."""
    taken = [asyncio.ensure_future(replica.say("hold", timeout=LIMIT_S)) for _ in range(SLOTS)]
    while await replica.held() < SLOTS:  # noqa: ASYNC110 - seen from outside only
        await asyncio.sleep(0.01)
    yield
    assert [answer async for answer in replica.count("release")]
    assert [answer.value for answer in await asyncio.gather(*taken)] == ["hold"] * SLOTS


async def flood(replica: Replica, connections: int) -> list[RemoteRefusal]:
    """The refusals of ABOVE calls, all sent at once over this many connections."""
    message = "x" * MESSAGE_BYTES
    async with AsyncExitStack() as stack:
        opened = [connection(replica.address) for _ in range(connections)]
        stubs = [EchoStub(await stack.enter_async_context(channel)) for channel in opened]
        calls = (
            stubs[number % connections].say(message, timeout=LIMIT_S) for number in range(ABOVE)
        )
        return await asyncio.gather(*map(refusal_of, calls))


async def probe(replica: Replica, until: asyncio.Event) -> int:
    """Check the replica's health again and again; return how often."""
    checks = 0
    while not until.is_set():
        for name in ("", "liveness"):
            assert await replica.check(name) == SERVING
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
    kinds = {(refusal.code, refusal.reason, refusal.retry_after_s) for refusal in refusals}
    assert kinds == {(Code.RESOURCE_EXHAUSTED, "OVERLOADED", 0.5)}
    assert growth < GROWTH_BYTES_MAX
    assert (await replica.say("afterwards", timeout=LIMIT_S)).value == "afterwards"


FILES = 10


async def test_a_replica_without_file_descriptors_serves_and_then_accepts_again(
    replica: Replica,
) -> None:
    """Who is connected is served; who is not, as soon as others have gone."""
    await replica.say("first", timeout=LIMIT_S)
    replica.allow_files(FILES)
    host, _, port = replica.address.rpartition(":")
    async with AsyncExitStack() as stack:
        for _ in range(2 * FILES):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
        assert (await replica.say("connected", timeout=LIMIT_S)).value == "connected"
        other = EchoStub(await stack.enter_async_context(connection(replica.address)))
        waiting = asyncio.ensure_future(other.say("later", wait_for_ready=True, timeout=LIMIT_S))
        assert (await replica.say("meanwhile", timeout=LIMIT_S)).value == "meanwhile"
        assert not waiting.done()
    async with connection(replica.address) as channel:
        reply = await EchoStub(channel).say("after", wait_for_ready=True, timeout=LIMIT_S)
    assert reply.value == "after"
