"""Clients that attack a replica: its memory is bounded, and honest clients are served meanwhile.

Each attack runs against the echo service as a process, with the server's own options. Growth is of
the peak of its resident memory. The figures are in docs/guides/limits.md.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

import grpc
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue

from common.rpc.status import from_rpc_error
from tests.integration.common.echo import SAY, SERVING, EchoStub
from tests.integration.common.echo_process import Replica, connection, replica_with
from tests.support.http2 import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    READS_NOTHING,
    RST_STREAM,
    SETTINGS,
    RawConnection,
    call_headers,
    frame,
    message,
    raw_connection,
)
from tests.support.payments import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB: Final = 2**20
LIMIT_S: Final = 120.0
ATTACK_S: Final = 10.0
"""How long an attack takes at most. Its connections stay open until honest calls were served."""
SLOTS: Final = 50
STREAMS: Final = 3 * SLOTS
"""Calls that a connection may have open."""
OPENING: Final = PREFACE + frame(SETTINGS)
CALL: Final = call_headers(SAY)
HEAD: Final = frame(HEADERS, END_HEADERS, 1, CALL)
BOMB_BYTES: Final = 64 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    """Its requests have 3 s to arrive."""
    limits = {"TALLY_MAX_CONCURRENT_CALLS": str(SLOTS), "TALLY_DEFAULT_DEADLINE_S": "3"}
    async with replica_with(**limits) as running:
        yield running


@dataclass
class Attack:
    """Connections of an attacker, which stay open until the attack is over."""

    address: str
    exits: AsyncExitStack

    async def connect(self, opening: bytes = OPENING) -> RawConnection:
        return await self.exits.enter_async_context(raw_connection(self.address, opening))


Act = Callable[[Attack], Awaitable[None]]


def numbers(count: int) -> range:
    """The streams of so many calls."""
    return range(1, 2 * count, 2)


def connections(count: int, opening: bytes) -> Act:
    """So many connections that send this and no more."""

    async def act(attack: Attack) -> None:
        for _ in range(count):
            await attack.connect(opening)

    return act


async def idle(attack: Attack) -> None:
    opened = [await attack.connect() for _ in range(1_000)]
    for each in opened:
        assert await each.ping() is None


async def half_sent(attack: Attack) -> None:
    """Messages of which all has been sent but the last byte."""
    content = message(b"x" * 256 * 1024)[:-1]
    for _ in range(8):
        each = await attack.connect()
        for stream in numbers(STREAMS):
            each.send(HEADERS, END_HEADERS, stream, CALL)
        await each.upload(numbers(STREAMS), content)


async def half_open(attack: Attack) -> None:
    heads = b"".join(frame(HEADERS, END_HEADERS, stream, CALL) for stream in numbers(STREAMS))
    for _ in range(20):
        await (await attack.connect(OPENING + heads)).writer.drain()


async def gzip_bombs(attack: Attack) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(BOMB_BYTES // MIB))
    content = message(packed + packer.flush(), compressed=True)
    each = await attack.connect()
    for stream in numbers(8):
        head = call_headers(SAY, (b"grpc-encoding", b"gzip"))
        each.send(HEADERS, END_HEADERS, stream, head)
    await each.upload(numbers(8), content)


async def metadata(attack: Attack) -> None:
    entries = [(b"x-%d" % number, b"y" * 64) for number in range(200)]
    each = await attack.connect()
    for stream in numbers(STREAMS):
        each.send(HEADERS, END_HEADERS | END_STREAM, stream, call_headers(SAY, *entries))
    await each.end_of(*numbers(STREAMS))


async def rapid_resets(attack: Attack) -> None:
    each = await attack.connect()
    reset = CANCEL.to_bytes(4, "big")
    for stream in numbers(5_000):
        each.send(HEADERS, END_HEADERS, stream, CALL)
        each.send(RST_STREAM, 0, stream, reset)
    await each.writer.drain()
    await each.ping()


async def settings(attack: Attack) -> None:
    """Settings whose acknowledgements are never read."""
    each = await attack.connect()
    for _ in range(200):
        each.writer.write(frame(SETTINGS) * 200)
        await each.writer.drain()


async def empty_frames(attack: Attack) -> None:
    each = await attack.connect(OPENING + HEAD)
    for _ in range(200):
        each.writer.write(frame(DATA, 0, 1) * 200)
        await each.writer.drain()
    await each.ping()


async def unread_replies(attack: Attack) -> None:
    """Calls whose responses the client does not accept."""
    content = message(StringValue(value="x" * 60_000).SerializeToString())
    for _ in range(4):
        each = await attack.connect(READS_NOTHING)
        for stream in numbers(STREAMS):
            each.send(HEADERS, END_HEADERS, stream, CALL)
        await each.upload(numbers(STREAMS), content)


ATTACKS: Final[dict[str, tuple[Act, int]]] = {
    "connections that send nothing": (connections(200, b""), 32),
    "half a preface": (connections(200, PREFACE[:10]), 32),
    "no settings": (connections(200, PREFACE), 32),
    "idle connections": (idle, 96),
    "slow senders": (
        connections(200, OPENING + HEAD + frame(DATA, 0, 1, message(b"x", length=60_000))),
        32,
    ),
    "half-open calls": (half_open, 128),
    "half-sent messages": (half_sent, 240),
    "gzip bombs": (gzip_bombs, 32),
    "metadata above the limit": (metadata, 32),
    "calls reset at once": (rapid_resets, 96),
    "settings without an end": (settings, 32),
    "empty frames": (empty_frames, 32),
    "responses that are not read": (unread_replies, 192),
}
"""What an attacker does, and by how many MiB the memory may grow."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("act", "growth_mib_max"), ATTACKS.values(), ids=ATTACKS)
async def test_memory_is_bounded_and_honest_clients_are_served(
    replica: Replica, act: Act, growth_mib_max: int
) -> None:
    before = replica.reset_peak()
    async with AsyncExitStack() as exits:
        # The server may close the connections of an attacker, or not read on.
        with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(ATTACK_S):
                await act(Attack(replica.address, exits))
        assert await replica.check() == SERVING
        # More half requests than there may be are refused, honest calls too until these have ended.
        await until(lambda: served(replica))
        async with connection(replica.address) as channel:
            await until(lambda: served(EchoStub(channel)))
        growth = replica.memory("VmHWM") - before
    assert growth < growth_mib_max * MIB


async def served(client: EchoStub) -> bool:
    """Whether a call is served. It may be refused, but not be lost."""
    try:
        await client.say("honest", wait_for_ready=True, timeout=LIMIT_S)
    except grpc.aio.AioRpcError as error:
        assert from_rpc_error(error).reason == "OVERLOADED"
        return False
    return True
