"""How locks end: closed while they are held or waited for, and lost before their block begins."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from common.locking import key_locks
from common.locking.key_lease import Hold
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.key_scripts import redis_keys
from common.locking.lock_errors import LockLost, LocksClosed
from deploy.local.valkey import ValkeyServer
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true

LEASE_S = 0.3


@pytest.fixture
async def locks(valkey_server: ValkeyServer, slow_machine: None) -> AsyncIterator[KeyLocks]:
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S
    ) as opened:
        await until_true(opened._channel_ready)
        yield opened


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_lock_held_when_its_locks_close_ends_with_its_lease(
    locks: KeyLocks, redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    monkeypatch.setattr(key_locks, "CLOSE_S", 0.01)
    hold = await locks.hold([key], wait_s=LONG_S, required=True).__aenter__()
    lease = hold._lease
    assert lease is not None
    first_end = lease.until
    if renewed:
        await until_true(lambda: lease.until > first_end)
    lost = asyncio.Event()
    hold.when_lost(lost.set)
    await locks.close()
    assert not hold.lost
    async with asyncio.timeout(LONG_S):
        await lost.wait()
        while await redis.exists(key):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("required", [False, True])
async def test_a_waiter_of_closed_locks_never_runs_beside_the_holder(
    locks: KeyLocks, redis: Redis, key: str, required: bool
) -> None:
    await redis.set(key, "another:1")
    waiting = asyncio.create_task(locks.hold([key], wait_s=LONG_S, required=required).__aenter__())
    async with asyncio.timeout(LONG_S):
        while not await redis.exists(redis_keys((key,))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await locks.close()
    with pytest.raises(LocksClosed):
        await waiting
    with pytest.raises(LocksClosed):
        await locks.hold([key], wait_s=LONG_S, required=required).__aenter__()
    assert not await redis.exists(redis_keys((key,))[1])


async def test_a_lock_lost_before_its_block_begins_cancels_nothing(
    locks: KeyLocks, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = locks.acquire

    async def acquire_late(*arguments: Any, **options: Any) -> Hold:
        hold = await acquire(*arguments, **options)
        assert hold._lease is not None
        hold._lease.until = -math.inf  # as after a pause of the process
        return hold

    monkeypatch.setattr(locks, "acquire", acquire_late)
    with pytest.raises(LockLost):
        async with locks.hold([key], wait_s=LONG_S, required=True, cancel_on_loss=True):
            pytest.fail("the block began")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    monkeypatch.undo()
    async with locks.hold([key], wait_s=LONG_S, required=True, cancel_on_loss=True):
        pass
