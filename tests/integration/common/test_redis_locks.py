"""Locks in Redis: they order contenders while their owner lives, and never outlive its lease."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from common.ids import new_id
from common.locking.locks import Grant, Locks
from common.locking.redis_lock import LEASE_MS, open_locks
from deploy.local.valkey import ValkeyServer


@pytest.fixture
async def locks(valkey_server: ValkeyServer, redis: Redis) -> AsyncIterator[Locks]:
    async with open_locks(valkey_server.url) as opened:
        yield opened


async def test_a_key_has_one_owner_at_a_time_and_a_lease(locks: Locks, redis: Redis) -> None:
    one, two, three = sorted(new_id() for _ in range(3))
    first = await locks.acquire([one, two])
    assert first == Grant(first.token, frozenset({one, two}), frozenset())
    second = await locks.acquire([two, three])
    assert second == Grant(second.token, frozenset({three}), frozenset({two}))
    assert 0 < await redis.pttl(one) <= LEASE_MS
    await locks.release(first)
    assert (await locks.acquire([one, two, three])).acquired == {one, two}


async def test_only_the_owner_frees_a_lock(locks: Locks, redis: Redis) -> None:
    """After the lease has expired, another owner may hold the key."""
    key = new_id()
    expired = await locks.acquire([key])
    await redis.delete(key)
    await locks.acquire([key])
    await locks.release(expired)
    assert (await locks.acquire([key])).busy == {key}
