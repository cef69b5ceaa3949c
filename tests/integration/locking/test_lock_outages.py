"""What a Redis that stalls, is mute or is asked for too much does to those who hold and wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import until
from tests.support.fake_server import TcpProxy
from tests.support.time_limits import LONG_S

STALL_S = 0.15
"""Longer than a command's limit, shorter than a lease."""


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

        await until(renewed_or_lost)
        assert not proxy.stalls
        assert [hold.lost for hold in holds] == [False] * 3
