"""What a Redis that stalls, is mute or is asked for too much does to those who hold and wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.lock_errors import LockBusy, LockUnavailable
from common.locking.redis import CONNECTIONS_MAX, FAILURES_MAX
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled
from tests.support.fake_server import TcpProxy
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true

STALL_S = 0.15
"""Longer than a command's limit, shorter than a lease."""
WAIT_S = 0.3
"""Long enough for a reply, shorter than a command's limit on a ``slow_machine``."""


class Stalling(TcpProxy):
    """A proxy that can stall at the next script."""

    stalls = False

    async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
        if self.stalls and b"EVALSHA" in data:
            self.stalls = False
            self.forwards.clear()
            asyncio.get_running_loop().call_later(STALL_S, self.forwards.set)
        await super().before(data, to_client=to_client, connection=connection)


@pytest.fixture
async def proxy(valkey_server: ValkeyServer) -> AsyncIterator[Stalling]:
    async with Stalling.to(f"127.0.0.1:{valkey_server.port}") as running:
        yield running


@pytest.fixture
def url(valkey_server: ValkeyServer, proxy: Stalling) -> str:
    return valkey_server.url.replace(f"127.0.0.1:{valkey_server.port}", proxy.address)


async def test_a_stall_of_three_renewals_loses_no_lock(url: str, proxy: Stalling, key: str) -> None:
    """Three failures in a row open the circuit, for as long as the lease is."""
    async with (
        open_key_locks(url, "test", waiting=Waiting.SPIN) as locks,
        AsyncExitStack() as exits,
    ):
        holds = [
            await exits.enter_async_context(
                locks.hold([f"{key}:{number}"], wait_s=LONG_S, required=True)
            )
            for number in range(3)
        ]
        ends = [hold._lease.until for hold in holds if hold._lease is not None]
        proxy.stalls = True

        def renewed_or_lost() -> bool:
            return all(
                hold.lost or (hold._lease is not None and hold._lease.until > end)
                for hold, end in zip(holds, ends, strict=True)
            )

        await until_true(renewed_or_lost)
        assert not proxy.stalls
        assert [hold.lost for hold in holds] == [False] * 3


@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("waiting", [Waiting.SPIN, Waiting.HANDOFF])
async def test_a_mute_redis_is_not_a_busy_key(
    url: str, proxy: Stalling, key: str, waiting: Waiting
) -> None:
    """Although the wait limit passes before the limit of the command."""
    async with open_key_locks(url, "test", waiting=waiting) as locks:
        proxy.forwards.clear()
        with pytest.raises(LockUnavailable):
            await locks.hold([key], wait_s=0.01, required=True).__aenter__()
        async with locks.hold([f"{key}:2"], wait_s=0.01) as hold:
            assert not hold.guarded
        proxy.forwards.set()


@pytest.mark.usefixtures("slow_machine")
async def test_a_redis_that_is_mute_after_a_refusal_leaves_the_key_busy(
    url: str, proxy: Stalling, redis: Redis, key: str
) -> None:
    await redis.set(key, "another:1")
    async with open_key_locks(url, "test", waiting=Waiting.SPIN) as locks:
        waiting = asyncio.create_task(locks.hold([key], wait_s=WAIT_S).__aenter__())
        await until_true(lambda: any(line._refused for line in locks._lines.values()))
        proxy.forwards.clear()
        with pytest.raises(LockBusy):
            await waiting
        proxy.forwards.set()


@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("waiting", [Waiting.SPIN, Waiting.HANDOFF])
async def test_a_caller_that_joins_a_waiting_line_finds_the_key_busy(
    url: str, redis: Redis, key: str, waiting: Waiting
) -> None:
    """The line asks Redis so seldom that its next reply comes after the wait limit."""
    await redis.set(key, "another:1")
    async with open_key_locks(url, "test", waiting=waiting) as locks:
        first = asyncio.create_task(locks.hold([key], wait_s=LONG_S).__aenter__())
        await until_true(lambda: any(line._refused for line in locks._lines.values()))
        with pytest.raises(LockBusy):
            await locks.hold([key], wait_s=0.001).__aenter__()
        first.cancel()


@pytest.mark.usefixtures("slow_machine")
async def test_as_many_keys_as_are_wanted_at_once_are_locked(
    valkey_server: ValkeyServer, key: str
) -> None:
    """More than the client has connections."""

    async def hold(number: int) -> bool:
        async with locks.hold([f"{key}:{number}"], wait_s=LONG_S) as held:
            return held.guarded

    async with open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF) as locks:
        assert all(await asyncio.gather(*map(hold, range(3 * CONNECTIONS_MAX))))


async def test_what_an_open_circuit_keeps_back_is_neither_freed_nor_remembered(
    url: str, proxy: Stalling, key: str
) -> None:
    proxy.target = "127.0.0.1:1"
    async with open_key_locks(url, "test", waiting=Waiting.SPIN) as locks:
        for number in range(FAILURES_MAX):
            async with locks.hold([f"{key}:{number}"], wait_s=LONG_S) as hold:
                assert not hold.guarded
        await settled(locks)
        connections = len(proxy.flows)
        async with locks.hold([key], wait_s=LONG_S) as hold:
            assert not hold.guarded
        await settled(locks)
        assert len(proxy.flows) == connections
        assert len(locks._unknown) == FAILURES_MAX
