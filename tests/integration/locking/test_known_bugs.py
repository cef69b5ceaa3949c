"""Bugs of other lock libraries: each is a test here, where it can apply at all.

Tested elsewhere: a cancelled acquisition leaks its key, tokens shared by the tasks of a thread
(``test_lock_cancellation``); a lost reply locks out its own caller, a message missed during a
reconnect (``test_lock_connections``); a renewal creates a lost lock, a fence lives for ever,
opposite orders of keys deadlock (``test_key_locks``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.key_scripts import CHANNEL, redis_keys
from common.locking.lock_errors import LockUnavailable
from common.locking.redis import RedisUnavailable
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled
from tests.integration.locking.worker import Work
from tests.support.fake_server import TcpProxy
from tests.support.lock_workers import worker
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true

LEASE_S = 0.3


@pytest.fixture
async def short(valkey_server: ValkeyServer, slow_machine: None) -> AsyncIterator[KeyLocks]:
    """Locks with a short lease."""
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S
    ) as locks:
        await until_true(locks._channel_ready)
        yield locks


def replace_command(locks: KeyLocks, name: str, command: Any) -> Any:
    """Let a command of the locks be another function; returns the real one."""

    class Replaced:
        def __getattr__(self, wanted: str) -> Any:
            return command if wanted == name else getattr(real, wanted)

    assert locks._terms is not None
    real = locks._terms.commands
    locks._terms = replace(locks._terms, commands=Replaced())
    return getattr(real, name)


def note(messages: list[str], deliver: Callable[[str], None], message: str) -> None:
    messages.append(message)
    deliver(message)


async def queue_length(redis: Redis, key: str, length: int) -> None:
    async with asyncio.timeout(LONG_S):
        while await redis.llen(redis_keys((key,))[1]) != length:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_renewal_in_flight_does_not_follow_the_release(
    short: KeyLocks, redis: Redis, key: str
) -> None:
    """redisson#7272: a watchdog renewed after the unlock."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow_renewal(*arguments: Any) -> bool:
        begun.set()
        await go_on.wait()
        return bool(await renew(*arguments))

    renew = replace_command(short, "renew", slow_renewal)
    async with short.hold([key], wait_s=LONG_S):
        await begun.wait()
    await asyncio.sleep(0.01)
    assert await redis.exists(key)
    go_on.set()
    await settled(short)
    assert not await redis.exists(key)


async def test_one_failed_renewal_does_not_end_the_renewals(
    short: KeyLocks, redis: Redis, key: str
) -> None:
    """redisson#2515, redisson#3712: a watchdog died of one error."""
    failures = 1
    renewed = asyncio.Event()

    async def failing_renewal(*arguments: Any) -> bool:
        nonlocal failures
        if failures:
            failures -= 1
            raise RedisUnavailable
        renewed.set()
        return bool(await renew(*arguments))

    renew = replace_command(short, "renew", failing_renewal)
    async with short.hold([key], wait_s=LONG_S, required=True, cancel_on_loss=True):
        await renewed.wait()


async def test_the_leases_of_many_locks_are_renewed_in_time(
    valkey_server: ValkeyServer, key: str, slow_machine: None
) -> None:
    """rueidis#923: with many locks the watchdog lagged, and leases ended."""
    async with (
        open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF) as locks,
        contextlib.AsyncExitStack() as exits,
    ):
        holds = [
            await exits.enter_async_context(
                locks.hold([f"{key}:{number}"], wait_s=LONG_S, required=True, cancel_on_loss=True)
            )
            for number in range(300)
        ]
        leases = [hold._lease for hold in holds if hold._lease is not None]
        granted_until = [lease.until for lease in leases]
        await until_true(
            lambda: all(
                lease.until > before for lease, before in zip(leases, granted_until, strict=True)
            )
        )
        assert not any(hold.lost for hold in holds)


async def test_nobody_queues_before_messages_arrive(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    """miintto/redis-lock-py#3: it subscribed after the failed attempt, and slept through."""
    async with (
        open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF) as deaf,
        open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF) as holder,
    ):
        deaf.listen(None)
        hold = await holder.hold([key], wait_s=LONG_S).__aenter__()
        waiting: Any = asyncio.create_task(deaf.hold([key], wait_s=LONG_S).__aenter__())
        await asyncio.sleep(0.05)
        assert not await redis.exists(redis_keys((key,))[1])
        holder.ended(hold)
        deaf.ended(await waiting)


async def test_a_release_wakes_one_waiter(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    """redisson#3349: a release woke a contender in every process."""
    async with contextlib.AsyncExitStack() as exits:
        replicas = [
            await exits.enter_async_context(
                open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF)
            )
            for _ in range(6)
        ]
        messages: list[str] = []
        for locks in replicas:
            await until_true(locks._channel_ready)
            channel: Any = locks._channel
            deliver = channel._deliver
            channel._deliver = partial(note, messages, deliver)
        first = await replicas[0].hold([key], wait_s=LONG_S).__aenter__()
        others: Any = []
        for number, locks in enumerate(replicas[1:]):
            others.append(asyncio.create_task(locks.hold([key], wait_s=LONG_S).__aenter__()))
            await queue_length(redis, key, number + 1)
        replicas[0].ended(first)
        for number, locks in enumerate(replicas[1:]):
            hold = await others[number]
            assert len(messages) == number + 1
            locks.ended(hold)


async def test_a_waiter_that_was_killed_is_passed_over(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    """redisson#1104, #2278, #4661, #5019: a dead waiter kept the queue for its whole time."""
    async with (
        open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=600.0) as locks,
        contextlib.AsyncExitStack() as exits,
    ):
        await until_true(locks._channel_ready)
        hold = await locks.hold([key], wait_s=LONG_S).__aenter__()
        work = Work(valkey_server.url, key, 1, lease_s=600.0)
        dead = await exits.enter_async_context(worker(work))
        await queue_length(redis, key, 1)
        alive = await exits.enter_async_context(worker(work))
        await queue_length(redis, key, 2)
        dead.process.kill()
        await dead.process.wait()
        channel = f"{CHANNEL}{await first_waiter(redis, key)}"
        async with asyncio.timeout(LONG_S):
            while dict(await redis.pubsub_numsub(channel))[channel]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        locks.ended(hold)
        # With a lease of ten minutes, it gets the lock in time only if nothing waits for the dead.
        await alive.until(lambda: alive.held)


async def first_waiter(redis: Redis, key: str) -> str:
    """The process of the first waiter."""
    return str(await redis.lindex(redis_keys((key,))[1], 0)).rpartition(":")[0]


async def test_a_failed_release_masks_no_cancellation(
    valkey_server: ValkeyServer, key: str
) -> None:
    """redis-py#3847, redis-py#4121: LockNotOwnedError hid that the task was cancelled."""
    async with TcpProxy.to(f"127.0.0.1:{valkey_server.port}") as proxy:
        url = valkey_server.url.replace(f"127.0.0.1:{valkey_server.port}", proxy.address)
        async with open_key_locks(url, "test", waiting=Waiting.HANDOFF) as locks:
            held = asyncio.Event()

            async def work() -> None:
                async with locks.hold([key], wait_s=LONG_S, required=True, cancel_on_loss=True):
                    held.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await held.wait()
            proxy.target = "127.0.0.1:1"
            proxy.cut()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()


async def test_a_command_without_a_reply_is_not_sent_again(
    valkey_server: ValkeyServer, key: str
) -> None:
    """midaz#2485: the client library repeated a script after a timeout, and it ran twice."""

    class Counting(TcpProxy):
        scripts = 0

        async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
            if b"EVALSHA" in data and b"{queue}" in data:
                self.scripts += 1
                raise ConnectionResetError

    async with Counting.to(f"127.0.0.1:{valkey_server.port}") as proxy:
        url = valkey_server.url.replace(f"127.0.0.1:{valkey_server.port}", proxy.address)
        async with open_key_locks(url, "test", waiting=Waiting.SIMPLE) as locks:
            with pytest.raises(LockUnavailable):
                await locks.hold([key], required=True).__aenter__()
            await settled(locks)
        # ENTER once, and the FREE of what it may have taken.
        assert proxy.scripts == 2


@pytest.mark.parametrize("jump_s", [-3600, 3600])
async def test_a_server_whose_clock_jumps_lengthens_no_lease(
    short: KeyLocks, valkey_server: ValkeyServer, redis: Redis, key: str, jump_s: int
) -> None:
    """The time of a grant by message is the server's."""
    channel: Any = short._channel
    deliver = channel._deliver

    def deliver_jumped(message: str) -> None:
        number, fence, server_ms, lease_ms = message.split(":")
        deliver(f"{number}:{fence}:{int(server_ms) + jump_s * 1000}:{lease_ms}")

    channel._deliver = deliver_jumped
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S
    ) as other:
        first = await other.hold([key], wait_s=LONG_S).__aenter__()
        waiting: Any = asyncio.create_task(short.hold([key], wait_s=LONG_S).__aenter__())
        await queue_length(redis, key, 1)
        other.ended(first)
        hold = await waiting
        assert hold._lease.until <= asyncio.get_running_loop().time() + LEASE_S
        # Set back, the grant looks as if it were over: Redis is asked, and confirms it.
        assert hold.path == ("message" if jump_s > 0 else "reply")
        short.ended(hold)
