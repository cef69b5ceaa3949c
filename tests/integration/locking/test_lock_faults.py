"""Whatever fails, no two processes hold a lock at once, or PostgreSQL refuses the stale write."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from common.locking import redis as redis_calls
from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.key_scripts import redis_keys
from common.locking.lock_errors import LockBusy, LockLost, LockUnavailable
from common.locking.marks import open_marks
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled, until
from tests.integration.locking.worker import Work
from tests.support.databases import Databases, name_of
from tests.support.fake_server import TcpProxy
from tests.support.lock_workers import Worker, ended, overlaps, worker
from tests.support.time_limits import LONG_S

LEASE_S = 0.3
TABLE = """
CREATE TABLE counted (key text PRIMARY KEY, number bigint NOT NULL, fence bigint NOT NULL);
GRANT SELECT, INSERT, UPDATE ON counted TO tally_balance_runtime;
"""


@asynccontextmanager
async def workers(work: Work, count: int) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as exits:
        contexts = [worker(work) for _ in range(count)]
        yield list(await asyncio.gather(*map(exits.enter_async_context, contexts)))


@pytest.mark.parametrize("waiting", [Waiting.HANDOFF, Waiting.SPIN])
async def test_no_two_processes_hold_the_lock_at_once(
    valkey_server: ValkeyServer, key: str, waiting: Waiting
) -> None:
    work = Work(valkey_server.url, key, 20 if waiting is Waiting.SPIN else 100, tasks=5)
    work = replace(work, waiting=waiting.name)
    async with workers(work, 3) as running:
        await asyncio.gather(*map(ended, running))
    held = [one for each in running for one in each.held]
    assert len(held) == 3 * work.tasks * work.acquisitions
    assert overlaps(held) == []
    in_order = sorted(held, key=lambda one: one.began)
    fences = [one.fence for one in in_order]
    assert fences == sorted(set(fences))
    if waiting is Waiting.HANDOFF:
        assert {"message", "local"} <= {one.path for one in held}


async def test_the_check_finds_an_overlap(valkey_server: ValkeyServer, key: str) -> None:
    """The control: tasks with keys of their own exclude nobody."""
    work = Work(valkey_server.url, "", 20, tasks=5, hold_s=0.002)
    async with worker(work) as running:
        await ended(running)
    assert overlaps(running.held)


async def _flush(redis: Redis, _running: list[Worker]) -> None:
    for _ in range(5):
        await redis.flushall()
        await asyncio.sleep(0.02)


async def _kill_connections(redis: Redis, _running: list[Worker]) -> None:
    for _ in range(5):
        for kind in ("normal", "pubsub"):
            await redis.client_kill_filter(_type=kind, skipme=True)
        await asyncio.sleep(0.02)


async def _pause_clients(redis: Redis, _running: list[Worker]) -> None:
    await redis.client_pause(int(LEASE_S * 1_500))


async def _kill_one(_redis: Redis, running: list[Worker]) -> None:
    running[0].process.kill()


async def _stop_one(_redis: Redis, running: list[Worker]) -> None:
    running[0].process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE_S)
    running[0].process.send_signal(signal.SIGCONT)


FAULTS = [_flush, _kill_connections, _pause_clients, _kill_one, _stop_one]


@pytest.fixture
def counted(databases: Databases) -> Iterator[str]:
    with databases.clone("balance") as urls:
        databases.server.run_sql(TABLE, database=name_of(urls))
        yield _plain(urls)


def _plain(urls: ServiceUrls) -> str:
    return urls.runtime


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__[1:])
async def test_no_stale_write_is_accepted_and_the_lock_comes_back(
    valkey_server: ValkeyServer,
    redis: Redis,
    key: str,
    counted: str,
    fault: Callable[[Redis, list[Worker]], Awaitable[None]],
) -> None:
    async with _database(counted, key) as database:
        work = Work(
            valkey_server.url,
            key,
            30,
            hold_s=0.002,
            lease_s=LEASE_S,
            database=counted,
            timeout_s=0.1,
        )
        async with workers(work, 2) as running:
            await running[0].until(lambda: len(running[0].held) >= 3)
            await fault(redis, running)
            survivors = running[1:] if fault is _kill_one else running
            await asyncio.gather(*map(ended, survivors))
            if fault is _kill_one:
                await running[0].process.wait()
        accepted = sum(one.counted for each in running for one in each.held)
        number = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
        # The one that was killed may have written without saying so.
        assert number - accepted in ((0, 1) if fault is _kill_one else (0,))
        assert accepted >= 25


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "control"])
async def test_the_fence_refuses_the_write_of_a_holder_that_slept(
    valkey_server: ValkeyServer, key: str, counted: str, fenced: bool
) -> None:
    """Without the fence the write of the next holder is lost."""
    async with _database(counted, key) as database:
        slow = Work(
            valkey_server.url, key, 1, hold_s=0.2, lease_s=LEASE_S, database=counted, fenced=fenced
        )
        async with worker(slow) as sleeper:
            await sleeper.until(lambda: sleeper.reading)
            sleeper.process.send_signal(signal.SIGSTOP)
            async with worker(replace(slow, acquisitions=3, hold_s=0.0)) as other:
                await ended(other)
            assert [one.counted for one in other.held] == [True] * 3
            sleeper.process.send_signal(signal.SIGCONT)
            await ended(sleeper)
        assert [(one.lost, one.counted) for one in sleeper.held] == [(True, not fenced)]
        number = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
        assert number == (3 if fenced else 1)


@asynccontextmanager
async def _database(url: str, key: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("INSERT INTO counted VALUES ($1, 0, 0)", key)
        yield connection
    finally:
        await connection.close()


# -- replies that are lost or doubled ------------------------------------------------------------


class Mangling(TcpProxy):
    """A proxy that mangles the reply to scripts."""

    mangle: Callable[[bytes], None] | None = None
    first_reply = b""
    """Sent once more, before the next script is."""
    doubles = False
    """Whether each reply that is a text is sent twice."""

    async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
        await super().before(data, to_client=to_client, connection=connection)
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
            await until(lambda: lease.until > granted_until)
            renewed_until = lease.until
            await redis.delete(key)
            await until(lambda: hold.lost)
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


async def test_a_partition_ends_the_hold_before_the_lease(
    valkey_server: ValkeyServer, proxy: Mangling, redis: Redis, key: str
) -> None:
    url = through(proxy, valkey_server)
    async with open_key_locks(url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S) as locks:
        with pytest.raises(LockLost):
            async with locks.hold([key], wait_s=LONG_S, required=True, cancel_on_loss=True) as hold:
                proxy.forwards.clear()
                try:
                    await asyncio.sleep(LONG_S)
                finally:
                    # Or it has just ended there, but nobody else has it.
                    assert await redis.get(key) in {None, f"{locks._terms.commands.process}:1"}  # type: ignore[union-attr]
                    assert hold.lost
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
        await until(waiter._channel_ready)
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
        await until(locks._channel_ready)
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
        await until(locks._channel_ready)
