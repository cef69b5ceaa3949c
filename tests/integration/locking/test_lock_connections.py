"""Connections that lose or double a reply, stall, or are cut: no grant that Redis did not make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from common.locking import redis as redis_calls
from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.key_scripts import redis_keys
from common.locking.lock_errors import LockBusy, LockLost, LockUnavailable
from common.locking.marks import open_marks
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled
from tests.support.fake_server import TcpProxy
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true

LEASE_S = 0.3
LATE_S = 0.2


class Mangling(TcpProxy):
    """A proxy that mangles the reply to scripts."""

    mangle: Callable[[bytes], None] | None = None
    first_reply = b""
    """Sent once more, before the next script is."""
    late_s = 0.0
    """How much later each script arrives."""
    doubles = False
    """Whether each reply that is a text is sent twice."""

    async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
        await super().before(data, to_client=to_client, connection=connection)
        if not to_client and b"EVALSHA" in data:
            await asyncio.sleep(self.late_s)
        if to_client and self.mangle is not None and data.startswith(b"*"):
            self.mangle(data)
        if to_client and self.doubles and data.startswith(b"$"):
            self.flows[-1].to_client.write(data)
        if not to_client and self.first_reply and b"EVALSHA" in data:
            self.flows[-1].to_client.write(self.first_reply)
            self.first_reply = b""


@pytest.fixture
async def proxy(
    valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Mangling]:
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.02)
    async with Mangling.to(f"127.0.0.1:{valkey_server.port}") as running:
        yield running


def through(proxy: TcpProxy, server: ValkeyServer) -> str:
    return server.url.replace(f"127.0.0.1:{server.port}", proxy.address)


async def test_a_doubled_reply_is_no_grant(
    valkey_server: ValkeyServer, proxy: Mangling, redis: Redis, key: str
) -> None:
    """The next command on the connection gets the reply of the one before once more."""
    await redis.set(key, "another")
    url = through(proxy, valkey_server)
    async with open_key_locks(url, "test", waiting=Waiting.SIMPLE) as locks:

        def keep(data: bytes) -> None:
            proxy.mangle = None
            proxy.first_reply = data

        for _ in range(5):
            proxy.mangle = keep
            async with locks.hold([f"{key}:free"]) as hold:
                with pytest.raises((LockUnavailable, LockBusy)):
                    await locks.hold([key], required=True).__aenter__()
            assert hold.guarded
            await settled(locks)
            await asyncio.sleep(2 * redis_calls.OPEN_S)


async def test_a_doubled_reply_renews_nothing(
    valkey_server: ValkeyServer, proxy: Mangling, redis: Redis, key: str
) -> None:
    """The second renewal gets the reply to the first one, and the key is gone."""
    url = through(proxy, valkey_server)
    async with open_key_locks(url, "test", waiting=Waiting.SIMPLE, lease_s=LEASE_S) as locks:

        def keep(data: bytes) -> None:
            proxy.mangle = None
            proxy.first_reply = data

        async with locks.hold([key], required=True) as hold:
            lease = hold._lease
            assert lease is not None
            granted_until = lease.until
            proxy.mangle = keep
            await until_true(lambda: lease.until > granted_until)
            renewed_until = lease.until
            await redis.delete(key)
            await until_true(lambda: hold.lost)
            assert lease.until == renewed_until
            assert not proxy.first_reply


async def test_a_reply_that_waits_on_a_connection_is_not_that_of_the_next_command(
    valkey_server: ValkeyServer, proxy: Mangling, key: str
) -> None:
    """A mark has no number."""
    async with open_marks(valkey_server.url) as others:
        await others.done(key, "others")
    async with open_marks(through(proxy, valkey_server)) as marks:
        proxy.doubles = True
        assert await marks.begin(key, "one") == "DONE:others"
        proxy.doubles = False
        assert await marks.begin(f"{key}:free", "one") is None


async def test_a_lost_reply_does_not_lock_its_caller_out(
    valkey_server: ValkeyServer, proxy: Mangling, redis: Redis, key: str
) -> None:
    url = through(proxy, valkey_server)
    async with open_key_locks(url, "test", waiting=Waiting.SPIN) as locks:

        def lose(_data: bytes) -> None:
            proxy.mangle = None
            raise ConnectionResetError

        proxy.mangle = lose
        with pytest.raises(LockUnavailable):
            await locks.hold([key], wait_s=LONG_S, required=True).__aenter__()
        await settled(locks)
        assert not await redis.exists(key)
        async with locks.hold([key], wait_s=LONG_S, required=True):
            pass


@pytest.mark.usefixtures("slow_machine")
async def test_a_partition_ends_the_hold_before_the_lease(
    valkey_server: ValkeyServer, proxy: Mangling, redis: Redis, key: str
) -> None:
    """The lease counts from the time at which its command was sent; Redis has it a little later."""
    url = through(proxy, valkey_server)
    async with open_key_locks(url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S) as locks:
        assert locks._terms is not None
        await until_true(locks._channel_ready)
        proxy.late_s = LATE_S
        with pytest.raises(LockLost):
            async with locks.hold([key], wait_s=LONG_S, required=True, cancel_on_loss=True) as hold:
                proxy.forwards.clear()
                try:
                    await asyncio.sleep(LONG_S)
                finally:
                    assert hold.lost
                    owner = str(await redis.get(key))
                    assert owner.startswith(f"{locks._terms.commands.process}:")
        proxy.late_s = 0.0
        proxy.forwards.set()


@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("broken", ["cut", "forgotten"])
async def test_a_message_missed_during_a_reconnect_is_made_up_for(
    valkey_server: ValkeyServer,
    proxy: Mangling,
    redis: Redis,
    key: str,
    broken: str,
) -> None:
    """The key is handed over while the waiter's subscription is broken."""
    url = through(proxy, valkey_server)
    async with (
        open_key_locks(url, "test", waiting=Waiting.HANDOFF) as waiter,
        open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF) as holder,
    ):
        await until_true(waiter._channel_ready)
        (subscription,) = proxy.flows
        hold = await holder.hold([key], wait_s=LONG_S).__aenter__()
        waiting: Any = asyncio.create_task(waiter.hold([key], wait_s=LONG_S).__aenter__())
        while not await redis.exists(redis_keys((key,))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if broken == "cut":
            subscription.to_client.transport.abort()
        else:
            subscription.forgotten = True
        holder.ended(hold)
        waiter.ended(await waiting)


async def test_redis_that_was_away_locks_again(
    valkey_server: ValkeyServer, proxy: Mangling, key: str
) -> None:
    url = through(proxy, valkey_server)
    async with open_key_locks(url, "test", waiting=Waiting.HANDOFF) as locks:
        await until_true(locks._channel_ready)
        proxy.target = "127.0.0.1:1"
        proxy.cut()
        async with locks.hold([key], wait_s=LONG_S) as hold:
            assert not hold.guarded
        proxy.target = f"127.0.0.1:{valkey_server.port}"
        guarded = False
        while not guarded:
            async with locks.hold([key], wait_s=LONG_S) as hold:
                guarded = hold.guarded
            await asyncio.sleep(0.001)
        await until_true(locks._channel_ready)
