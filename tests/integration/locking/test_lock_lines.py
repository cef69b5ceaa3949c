"""Lines of callers: they let other processes have their turn, and believe only what is current."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from common.locking.key_commands import Entered, Keys, NodeCommands
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.key_scripts import TURNS_MAX, redis_keys
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true


@pytest.mark.parametrize("waiting", [Waiting.SPIN, Waiting.HANDOFF])
async def test_callers_that_come_back_at_once_leave_turns_to_others(
    valkey_server: ValkeyServer, key: str, slow_machine: None, waiting: Waiting
) -> None:
    """HANDOFF without a channel behaves as SPIN does."""
    served: list[int] = []

    async def work(replica: int) -> None:
        for _ in range(TURNS_MAX):
            async with replicas[replica].hold([key], wait_s=LONG_S, required=True):
                served.append(replica)

    async with AsyncExitStack() as exits:
        replicas = [
            await exits.enter_async_context(
                open_key_locks(valkey_server.url, "test", waiting=waiting)
            )
            for _ in range(2)
        ]
        for locks in replicas:
            locks.listen(None)
        await asyncio.gather(*(work(replica) for replica in [0, 1] * TURNS_MAX))
    half = Counter(served[: len(served) // 2])
    assert min(half[0], half[1]) >= 2 * TURNS_MAX


async def queued(redis: Redis, key: str) -> None:
    """Until a process waits for the key."""
    async with asyncio.timeout(LONG_S):
        while not await redis.exists(redis_keys((key,))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_callers_that_leave_are_forgotten_and_cost_no_command(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    """Unless the line is empty then."""
    entered: list[Keys] = []
    locks = replicas[0]
    assert locks._terms is not None
    enter = locks._terms.commands.enter

    async def counting(keys: Keys, number: int, *, waits: bool) -> Entered:
        entered.append(keys)
        return await enter(keys, number, waits=waits)

    locks._terms.commands.enter = counting  # type: ignore[method-assign]
    other = await replicas[1].hold([key], wait_s=LONG_S).__aenter__()
    waiting = [
        asyncio.create_task(locks.hold([key], wait_s=LONG_S).__aenter__()) for _ in range(20)
    ]
    await queued(redis, key)
    line = locks._lines[(key,)]
    await until_true(lambda: line._refused)
    before = len(entered)
    for task in waiting[1:]:
        task.cancel()
    await asyncio.gather(*waiting[1:], return_exceptions=True)
    # What the line would have sent, it would have sent before this.
    async with locks.hold([f"{key}:other"], wait_s=LONG_S):
        pass
    assert entered[before:] == [(f"{key}:other",)]
    assert len(line._callers) == 1
    waiting[0].cancel()
    await settled(locks)
    assert not await redis.exists(redis_keys((key,))[1])
    replicas[1].ended(other)


async def test_a_key_that_is_handed_over_has_the_lease_of_its_message(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None
) -> None:
    """The process that releases it has another lease, as in a rolling deployment."""
    async with AsyncExitStack() as exits:
        short, long = [
            await exits.enter_async_context(
                open_key_locks(valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=lease_s)
            )
            for lease_s in (0.5, 60.0)
        ]
        await until_true(long._channel_ready)
        first = await short.hold([key], wait_s=LONG_S).__aenter__()
        waiting = asyncio.create_task(long.hold([key], wait_s=LONG_S).__aenter__())
        await queued(redis, key)
        short.ended(first)
        hold = await waiting
        assert hold.path == "message"
        lease = hold._lease
        assert lease is not None
        assert lease.until <= asyncio.get_running_loop().time() + 0.5
        # It is renewed at once, for the time of its new owner.
        await until_true(lambda: lease.until > asyncio.get_running_loop().time() + 30.0)
        assert await redis.pttl(key) > 30_000
        long.ended(hold)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_refused_acquisition_owns_no_part_of_its_keys(
    redis: Redis, key: str, waits: bool
) -> None:
    """It was handed the first key while it queued; now it may not queue any more."""
    keys = (f"{key}:a", f"{key}:b")
    commands = NodeCommands(redis, lease_s=60.0)
    await redis.set(keys[0], f"{commands.process}:1")
    await redis.set(keys[1], "another:1")
    assert not (await commands.enter(keys, 1, waits=waits)).granted
    assert not await redis.exists(keys[0])


async def test_a_message_from_before_the_last_refusal_grants_nothing(
    replicas: list[KeyLocks], redis: Redis, key: str
) -> None:
    """As of a grant that a flush has undone, while the message was on its way."""
    seconds, microseconds = await redis.time()
    earlier_ms = seconds * 1000 + microseconds // 1000 - 1
    other = await replicas[1].hold([key], wait_s=LONG_S).__aenter__()
    waiting = asyncio.create_task(replicas[0].hold([key], wait_s=LONG_S).__aenter__())
    await queued(redis, key)
    line = replicas[0]._lines[(key,)]
    await until_true(lambda: line._refused)
    assert replicas[0]._terms is not None
    (number,) = replicas[0]._terms.lines
    replicas[0].deliver(f"{number}:{(other.fence or 0) + 1}:{earlier_ms}:60000")
    # What the line would have done with it, it would have done before this.
    async with replicas[0].hold([f"{key}:other"], wait_s=LONG_S):
        pass
    assert not waiting.done()
    replicas[1].ended(other)
    hold = await waiting
    assert (hold.fence or 0) > (other.fence or 0)
    replicas[0].ended(hold)
