"""Key locks: one holder at a time, first come first served, and every limit is kept."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Collection

import pytest
from redis.asyncio import Redis

from common import deadlines
from common.errors import DeadlineTooShort
from common.locking.key_lease import Hold
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.key_scripts import TURNS_MAX, redis_keys
from common.locking.lock_errors import InvalidLock, LockBusy, LockLost, LockUnavailable
from common.locking.lock_limits import KEY_BYTES_MAX, KEYS_MAX, LEASE_S
from common.metrics import REGISTRY
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true

WAIT_S = LONG_S
NO_REDIS = "redis://127.0.0.1:1/0"


def losses(kind: str) -> float:
    labels = {"lock": "test", "kind": kind}
    return REGISTRY.get_sample_value("tally_key_lock_losses_total", labels) or 0.0


async def taken(locks: KeyLocks, keys: Collection[str], wait_s: float = WAIT_S) -> Hold:
    """A hold that the test ends by ``locks.ended``."""
    return await locks.hold(keys, wait_s=wait_s).__aenter__()


async def queued(redis: Redis, key: str, count: int) -> None:
    """Until so many processes wait."""
    async with asyncio.timeout(LONG_S):
        while await redis.llen(redis_keys((key,))[1]) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("waiting", Waiting)
async def test_a_key_has_one_holder_and_is_free_after_it(
    valkey_server: ValkeyServer, key: str, waiting: Waiting, slow_machine: None
) -> None:
    short, long = (0.0, 0.0) if waiting is Waiting.SIMPLE else (0.1, WAIT_S)
    async with (
        open_key_locks(valkey_server.url, "test", waiting=waiting) as one,
        open_key_locks(valkey_server.url, "test", waiting=waiting) as two,
    ):
        async with two.hold([f"{key}:other"], wait_s=long):
            pass  # it is connected from now on, and has a reply within the short wait
        async with one.hold([key], wait_s=long) as hold:
            assert hold.guarded
            assert not hold.lost
            for locks in (one, two):
                with pytest.raises(LockBusy):
                    await locks.hold([key], wait_s=short).__aenter__()
        for _ in range(3):
            async with one.hold([key], wait_s=long) as again:
                assert (again.fence or 0) > (hold.fence or 0)
        await settled(one)
        async with two.hold([key], wait_s=long):
            pass


async def test_waiters_of_all_replicas_are_served_in_order(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    served: list[int] = []

    async def wait(number: int) -> None:
        async with replicas[number % 2].hold([key], wait_s=WAIT_S):
            served.append(number)

    first = await taken(replicas[0], [key])
    waiters = []
    for number in (1, 0):
        waiters.append(asyncio.create_task(wait(number)))
        await queued(redis, key, 1)
    waiters.append(asyncio.create_task(wait(3)))
    await asyncio.sleep(0)
    replicas[0].ended(first)
    await asyncio.gather(*waiters)
    # 0 has its turn in its own replica, which held the key; then the other replica.
    assert served == [0, 1, 3]


async def test_a_replica_passes_the_key_on_after_eight_turns(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    served: list[int] = []
    fences: list[int] = []

    async def wait(replica: int) -> None:
        async with replicas[replica].hold([key], wait_s=WAIT_S) as hold:
            served.append(replica)
            fences.append(hold.fence or 0)

    first = await taken(replicas[0], [key])
    waiters = [asyncio.create_task(wait(1)) for _ in range(3 * TURNS_MAX)]
    await queued(redis, key, 1)
    waiters += [asyncio.create_task(wait(0)) for _ in range(3 * TURNS_MAX)]
    await asyncio.sleep(0)
    replicas[0].ended(first)
    await asyncio.gather(*waiters)
    runs = [len(list(group)) for _, group in itertools.groupby(served)]
    assert max(runs[:-1]) <= TURNS_MAX
    assert fences == sorted(set(fences))


async def test_of_several_keys_a_waiter_holds_none(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    other = f"{key}:z"
    first = await taken(replicas[0], [key])
    both = asyncio.create_task(taken(replicas[1], [other, key, other]))
    await queued(redis, key, 1)
    async with replicas[0].hold([other], wait_s=WAIT_S):
        pass
    replicas[0].ended(first)
    hold = await both
    assert await redis.get(key) == await redis.get(other) != None  # noqa: E711
    replicas[1].ended(hold)
    await settled(replicas[1])
    assert not await redis.exists(key, other)


async def test_of_several_keys_a_waiter_keeps_none_that_was_handed_over(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    """One key is handed over while the other is still busy: it is free for others."""
    keys = [f"{key}:{letter}" for letter in "ab"]
    first, second = [await taken(replicas[0], [each]) for each in keys]
    both = asyncio.create_task(taken(replicas[1], keys))
    await queued(redis, keys[0], 1)
    replicas[0].ended(first)
    await queued(redis, keys[1], 1)
    assert not await redis.exists(keys[0])
    replicas[0].ended(second)
    replicas[1].ended(await both)


async def test_opposite_orders_of_keys_do_not_deadlock(replicas: list[KeyLocks], key: str) -> None:
    keys = [f"{key}:{letter}" for letter in "abc"]

    async def work(number: int) -> None:
        chosen = [keys[number % 3], keys[(number * 2 + 1) % 3]]
        async with replicas[number % 2].hold(chosen[:: -1 if number % 2 else 1], wait_s=WAIT_S):
            await asyncio.sleep(0)

    await asyncio.gather(*map(work, range(60)))


async def test_fences_rise_through_a_flush_and_a_clock_set_back(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    fences: list[int] = []
    for damage in (None, "flush", "clock set back", "flush"):
        if damage == "flush":
            await redis.delete(*redis_keys((key,)))
        elif damage is not None:
            # As if the last fence were of a time an hour ahead.
            await redis.set(redis_keys((key,))[2], fences[-1] + 3_600_000_000)
        async with replicas[0].hold([key], wait_s=WAIT_S) as hold:
            fences.append(hold.fence or 0)
        await settled(replicas[0])
    assert fences[:3] == sorted(set(fences[:3]))
    assert fences[3] > fences[1]


async def test_a_fence_expires_some_time_after_its_last_use(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    async with replicas[0].hold([key], wait_s=WAIT_S):
        assert await redis.ttl(redis_keys((key,))[2]) > 0


async def test_a_lease_is_renewed_while_it_is_held_and_not_after(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S
    ) as locks:
        async with locks.hold([key], wait_s=WAIT_S, required=True, cancel_on_loss=True) as hold:
            assert hold._lease is not None
            began_with = hold._lease.until
            # Two renewals, while the lease that it began with ends.
            await until_true(lambda: asyncio.get_running_loop().time() > began_with)
            hold.check()
            assert await redis.pttl(key) > 0
        await settled(locks)
        assert not await redis.exists(key)


@pytest.mark.parametrize("owner", [None, "another"])
async def test_a_lost_lock_cancels_the_holder_that_asks_for_it(
    valkey_server: ValkeyServer, redis: Redis, key: str, owner: str | None, slow_machine: None
) -> None:
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=0.3
    ) as locks:
        counted = losses("lost")
        with pytest.raises(LockLost):
            async with locks.hold([key], wait_s=WAIT_S, required=True, cancel_on_loss=True):
                await (redis.set(key, owner) if owner else redis.delete(key))
                await asyncio.sleep(LONG_S)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await settled(locks)
        assert losses("lost") == counted + 1
        # Not freed, nor taken again: it is another's.
        assert await redis.get(key) == owner


async def test_a_lost_lock_lets_a_holder_go_on_that_does_not_ask(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    async with (
        open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=0.3) as locks,
        locks.hold([key], wait_s=WAIT_S) as hold,
    ):
        await redis.delete(key)
        await until_true(lambda: hold.lost)
        with pytest.raises(LockLost):
            hold.check()


async def test_an_exception_of_the_block_is_not_masked_by_the_loss(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=0.3
    ) as locks:
        with pytest.raises(ZeroDivisionError):
            async with locks.hold([key], wait_s=WAIT_S, required=True, cancel_on_loss=True) as hold:
                await redis.delete(key)
                try:
                    await asyncio.sleep(LONG_S)
                except asyncio.CancelledError:
                    assert hold.lost
                    raise ZeroDivisionError from None


async def test_the_keys_of_an_unknown_commit_expire_and_are_not_freed(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S
    ) as locks:
        async with locks.hold([key], wait_s=WAIT_S) as hold:
            hold.leave_to_expire()
        await settled(locks)
        assert await redis.exists(key)
        async with locks.hold([key], wait_s=WAIT_S):
            pass


@pytest.mark.parametrize("url", ["", NO_REDIS])
async def test_without_redis_the_block_runs_unguarded_or_not_at_all(url: str, key: str) -> None:
    async with open_key_locks(url, "test", waiting=Waiting.HANDOFF) as locks:
        for _ in range(5):
            async with locks.hold([key], wait_s=WAIT_S) as hold:
                assert (hold.guarded, hold.fence, hold.lost) == (False, None, False)
                hold.check()
            with pytest.raises(LockUnavailable):
                await locks.hold([key], wait_s=WAIT_S, required=True).__aenter__()


@pytest.mark.parametrize(
    "keys",
    [
        *([], [""], "a key", ["x" * (KEY_BYTES_MAX + 1)], ["é" * KEY_BYTES_MAX]),
        ["a lone surrogate: \ud800"],
        *(["{}key"], ["key}"], ["{key"], ["{a}{b}"], ["{{a}}"]),
        [str(number) for number in range(KEYS_MAX + 1)],
    ],
    ids=lambda keys: ascii(keys)[:20],
)
async def test_keys_that_no_lock_can_have_are_refused(keys: Collection[str]) -> None:
    async with open_key_locks("", "test", waiting=Waiting.HANDOFF) as locks:
        with pytest.raises(InvalidLock, match="key"):
            locks.hold(keys, wait_s=1.0)


@pytest.mark.parametrize("wait_s", [0.0, -1.0, math.nan, math.inf])
async def test_a_wait_without_a_limit_is_refused(wait_s: float) -> None:
    async with open_key_locks("", "test", waiting=Waiting.SPIN) as locks:
        with pytest.raises(InvalidLock, match="wait_s"):
            locks.hold(["key"], wait_s=wait_s)
    async with open_key_locks("", "test", waiting=Waiting.SIMPLE) as locks:
        with pytest.raises(InvalidLock, match="wait_s"):
            locks.hold(["key"], wait_s=1.0)


async def test_a_loss_that_cancels_is_for_a_lock_that_is_required() -> None:
    async with open_key_locks("", "test", waiting=Waiting.SPIN) as locks:
        with pytest.raises(InvalidLock, match="required"):
            locks.hold(["key"], wait_s=1.0, cancel_on_loss=True)


@pytest.mark.parametrize("lease_s", [0.0, -1.0, 0.1, math.nan, math.inf])
async def test_a_lease_shorter_than_its_renewals_is_refused(lease_s: float) -> None:
    with pytest.raises(InvalidLock, match="lease_s"):
        async with open_key_locks("", "test", waiting=Waiting.SPIN, lease_s=lease_s):
            pass


async def test_a_wait_ends_with_the_callers_deadline(replicas: list[KeyLocks], key: str) -> None:
    hold = await taken(replicas[0], [key])
    replicas[1].ended(await taken(replicas[1], [f"{key}:other"]))  # connected from now on

    async def call() -> None:
        deadlines.start(0.2)
        async with replicas[1].hold([key], wait_s=WAIT_S):
            pass

    with pytest.raises(LockBusy):
        await asyncio.create_task(call())
    replicas[0].ended(hold)


@pytest.mark.parametrize("waiting", Waiting)
async def test_a_call_without_time_left_takes_no_lock(waiting: Waiting) -> None:
    async def call() -> None:
        deadlines.start(0.0)
        wait_s = 0.0 if waiting is Waiting.SIMPLE else WAIT_S
        async with locks.hold(["key"], wait_s=wait_s):
            pass

    async with open_key_locks("", "test", waiting=waiting) as locks:
        with pytest.raises(DeadlineTooShort):
            await asyncio.create_task(call())
