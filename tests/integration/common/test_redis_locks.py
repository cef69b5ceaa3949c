"""Locks in Redis: they order contenders while their owner lives, and never outlive its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from common.ids import new_id
from common.locking.lane_scripts import CHANNEL
from common.locking.locks import BusyKey, Grant, Keys, Locks
from common.locking.redis import open_redis
from common.locking.redis_lock import LEASE_MS, RedisLocks, open_locks
from deploy.local.valkey import ValkeyServer
from tests.support.time_limits import LONG_S


@pytest.fixture
async def replicas(
    valkey_server: ValkeyServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[RedisLocks]]:
    """Three processes that are told of releases."""
    monkeypatch.setattr("common.locking.redis.TIMEOUT_S", LONG_S)
    async with AsyncExitStack() as exits:
        opened: list[RedisLocks] = []
        for _ in range(3):
            locks = await exits.enter_async_context(open_locks(valkey_server.url))
            assert isinstance(locks, RedisLocks)
            opened.append(locks)
        async with asyncio.timeout(LONG_S):
            for locks in opened:
                await subscribed(redis, locks)
        yield opened


async def subscribed(redis: Redis, locks: RedisLocks) -> None:
    name = f"{CHANNEL}{locks.process}"
    while (await redis.pubsub_numsub(name))[0][1] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.fixture
def locks(replicas: list[RedisLocks]) -> Locks:
    return replicas[0]


def busy_key(grant: Grant, *keys: str) -> BusyKey:
    return grant.busy[keys]


def busy(grant: Grant) -> dict[Keys, str]:
    """The key for which each command waits."""
    return {keys: key.key for keys, key in grant.busy.items()}


async def test_a_key_has_one_owner_at_a_time_and_a_lease(locks: Locks, redis: Redis) -> None:
    one, two, three = (new_id() for _ in range(3))
    first = await locks.acquire([(one,), (two,)])
    assert first.acquired == {one, two}
    assert not first.busy
    second = await locks.acquire([(two,), (three,)])
    assert second.acquired == {three}
    assert busy(second) == {(two,): two}
    for key in (one, two):
        assert 0 < await redis.pttl(key) <= LEASE_MS
    await locks.release(first)
    assert (await locks.acquire([(one,), (two,), (three,)])).acquired == {one, two}


@asynccontextmanager
async def held(locks: Locks, *keys: str) -> AsyncIterator[None]:
    """Keys that another owner has in the block."""
    grant = await locks.acquire([(key,) for key in keys])
    assert grant.acquired == set(keys)
    yield
    await locks.release(grant)


async def test_a_command_owns_all_of_its_keys_or_none(locks: Locks, redis: Redis) -> None:
    a, b, c, d, e, f = (new_id() for _ in range(6))
    wanted = [(f, a, b), (b, c), (a, d), (d, e), (c,)]
    async with held(locks, b):
        grant = await locks.acquire(wanted)
        assert busy(grant) == {(f, a, b): b, (b, c): b}
        assert grant.acquired == {a, c, d, e}
        assert await redis.exists(f) == 0
        await locks.release(grant)
        assert await redis.exists(a, c, d, e) == 0
    assert (await locks.acquire(wanted)).acquired == {a, b, c, d, e, f}


async def test_only_the_owner_frees_a_lock(locks: Locks, redis: Redis) -> None:
    """After the lease has expired, another owner may hold the key."""
    key = new_id()
    expired = await locks.acquire([(key,)])
    await redis.delete(key)
    owner = await locks.acquire([(key,)])
    await locks.release(expired)
    assert busy(await locks.acquire([(key,)])) == {(key,): key}
    await locks.release(expired)
    assert busy(await locks.acquire([(key,)])) == {(key,): key}
    await locks.release(owner)
    assert (await locks.acquire([(key,)])).acquired == {key}


# -- waiting -------------------------------------------------------------------------------------


async def test_a_release_wakes_every_process_that_waits(replicas: list[RedisLocks]) -> None:
    """Those that want the key alone, and those that want others too."""
    first, second, third = replicas
    key, other = new_id(), new_id()
    owner = await first.acquire([(key,)])
    waits = [
        busy_key(await second.acquire([(key,)]), key),
        busy_key(await third.acquire([(other, key)]), other, key),
    ]
    assert not any(each.freed.is_set() for each in waits)
    await first.release(owner)
    async with asyncio.timeout(LONG_S):
        for each in waits:
            await each.freed.wait()
    assert (await second.acquire([(key,)])).acquired == {key}


async def test_a_process_is_noted_once_and_keeps_no_key_longer(
    replicas: list[RedisLocks], redis: Redis
) -> None:
    first, second, _ = replicas
    key = new_id()
    owner = await first.acquire([(key,)])
    before_ms = await redis.pttl(key)
    for _ in range(3):
        await second.acquire([(key,)])
    assert await redis.get(key) == f"{owner.token}|{second.process}"
    assert 0 < await redis.pttl(key) <= before_ms
    await first.release(owner)
    assert await redis.get(key) is None


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside one that ends earlier"])
async def test_a_release_before_the_reply_is_read_is_not_missed(
    replicas: list[RedisLocks], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """The message of a release comes on another connection than the reply."""
    first, second, _ = replicas
    key = new_id()
    owner = await first.acquire([(key,)])

    async def late(parts: Sequence[Any], token: str) -> object:
        reply = await send(parts, token)
        monkeypatch.setattr(second, "_send", send)
        for _ in range(others):
            await second.acquire([(new_id(),)])
        await first.release(owner)
        while not second._asking[token]:  # noqa: ASYNC110 - the message
            await asyncio.sleep(0.001)
        return reply

    send = second._send
    monkeypatch.setattr(second, "_send", late)
    grant = await asyncio.wait_for(second.acquire([(key,)]), LONG_S)
    assert busy_key(grant, key).freed.is_set()


async def test_a_subscription_that_is_back_before_the_reply_wakes_too(
    replicas: list[RedisLocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of the release may have been missed."""
    first, second, _ = replicas
    key = new_id()

    async def late(parts: Sequence[Any], token: str) -> object:
        reply = await send(parts, token)
        second.wake_all()
        return reply

    send = second._send
    async with held(first, key):
        with monkeypatch.context() as patch:
            patch.setattr(second, "_send", late)
            assert busy_key(await second.acquire([(key,)]), key).freed.is_set()
        assert not busy_key(await second.acquire([(key,)]), key).freed.is_set()


async def test_a_lost_subscription_wakes_all_who_wait_when_it_is_back(
    replicas: list[RedisLocks], redis: Redis
) -> None:
    """Messages may have been missed."""
    first, second, _ = replicas
    key = new_id()
    await first.acquire([(key,)])
    waits = busy_key(await second.acquire([(key,)]), key)
    await redis.client_kill_filter(_type="pubsub")
    await asyncio.wait_for(waits.freed.wait(), LONG_S)
    again = busy_key(await second.acquire([(key,)]), key)
    assert not again.freed.is_set()


@asynccontextmanager
async def restricted(
    valkey_server: ValkeyServer, redis: Redis, *commands: str
) -> AsyncIterator[RedisLocks]:
    """Locks of a user that has no channel, and has every command after these changes."""
    name = new_id()
    await redis.acl_setuser(
        name,
        enabled=True,
        passwords=["+word"],
        keys=["*"],
        commands=["+@all", *commands],
        reset_channels=True,
    )
    try:
        where = urlsplit(valkey_server.url)
        url = f"redis://{name}:word@{where.hostname}:{where.port}{where.path}"
        async with open_redis(url) as client:
            yield RedisLocks(client)
    finally:
        await redis.acl_deluser(name)


async def heard(redis: Redis, locks: RedisLocks) -> None:
    """Until the process has read what was published to it before."""
    marker = BusyKey(new_id())
    locks._busy[marker.key] = marker
    await redis.publish(f"{CHANNEL}{locks.process}", marker.key)
    await asyncio.wait_for(marker.freed.wait(), LONG_S)


async def test_a_user_that_may_not_publish_still_frees_its_locks(
    valkey_server: ValkeyServer, replicas: list[RedisLocks], redis: Redis
) -> None:
    """Those who wait do so until their limit."""
    key = new_id()
    async with restricted(valkey_server, redis) as owner:
        grant = await owner.acquire([(key,)])
        waits = busy_key(await replicas[1].acquire([(key,)]), key)
        await owner.release(grant)
    await heard(redis, replicas[1])
    assert not waits.freed.is_set()
    assert (await replicas[1].acquire([(key,)])).acquired == {key}


async def test_a_user_that_may_not_append_still_gets_the_free_locks(
    valkey_server: ValkeyServer, locks: Locks, redis: Redis
) -> None:
    key, free = new_id(), new_id()
    async with held(locks, key), restricted(valkey_server, redis, "-append") as other:
        grant = await other.acquire([(free,), (key,)])
        assert grant.acquired == {free}
        assert busy(grant) == {(key,): key}
        await other.release(grant)
    assert await redis.exists(free, key) == 0


async def test_a_key_of_another_kind_is_busy(locks: Locks, redis: Redis) -> None:
    """What others have stored under it is left alone."""
    key, free = new_id(), new_id()
    await redis.hset(key, "field", "value")
    grant = await locks.acquire([(key,), (free,)])
    assert grant.acquired == {free}
    assert busy(grant) == {(key,): key}


async def test_a_text_that_is_no_lock_of_this_release_is_busy_and_kept(
    locks: Locks, redis: Redis
) -> None:
    """An owner of an earlier release frees its key only if the value is still its token."""
    key, other = new_id(), new_id()
    token = new_id()
    await redis.set(key, token)
    for _ in range(2):
        grant = await locks.acquire([(key,), (other, key)])
        assert busy(grant) == {(key,): key, (other, key): key}
        await locks.release(grant)
    assert await redis.get(key) == token


# -- what it costs -------------------------------------------------------------------------------


async def commands(redis: Redis) -> dict[str, int]:
    stats = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


async def test_where_nobody_waits_a_batch_costs_two_scripts_and_a_set_of_each_key(
    locks: Locks, redis: Redis
) -> None:
    """What others would do to wait costs nothing while nobody waits."""
    keys = [new_id() for _ in range(6)]
    wanted = [(keys[0],), (keys[1],), tuple(keys[2:])]
    await locks.release(await locks.acquire(wanted))  # the scripts are there
    before = await commands(redis)
    await locks.release(await locks.acquire(wanted))
    after = await commands(redis)
    used = {name: after[name] - before.get(name, 0) for name in after}
    assert {name: count for name, count in used.items() if count and name != "info"} == {
        "evalsha": 2,
        "set": len(keys),
        "get": len(keys),
        "del": len(keys),
    }
