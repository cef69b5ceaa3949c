"""A cancellation at any await leaves no key past its holder, and no waiter stuck."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from redis.asyncio import Redis

from common.locking.key_lease import Hold
from common.locking.key_line import KeyLine, Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.key_scripts import TURNS_MAX, redis_keys
from common.locking.lock_errors import LockBusy
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import settled
from tests.support.time_limits import LONG_S

LEASE_S = 0.3


@dataclass
class Gated:
    """Commands that stop at one place until a test lets them go on."""

    commands: Any
    place: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.commands, name)
        return self._at(name, attribute) if asyncio.iscoroutinefunction(attribute) else attribute

    def _at(self, name: str, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def command(*arguments: Any, **options: Any) -> Any:
            await self._stop(f"before {name}")
            reply = await send(*arguments, **options)
            await self._stop(f"after {name}")
            return reply

        return command

    async def _stop(self, place: str) -> None:
        if place == self.place:
            self.reached.set()
            await self.go_on.wait()


def gate(locks: KeyLocks, place: str) -> Gated:
    assert locks._terms is not None
    gated = Gated(locks._terms.commands, place)
    locks._terms = replace(locks._terms, commands=gated)
    return gated


async def hold_forever(locks: KeyLocks, keys: list[str]) -> None:
    async with locks.hold(keys, wait_s=LONG_S):
        await asyncio.Event().wait()


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def assert_free(replicas: list[KeyLocks], redis: Redis, keys: list[str]) -> None:
    """Each replica gets the keys, and then nothing of them is left but fences."""
    for locks in replicas:
        async with locks.hold(keys, wait_s=LONG_S, required=True):
            pass
    for locks in replicas:
        await settled(locks)
        assert locks._lines == {}
    for key in keys:
        assert await redis.exists(*redis_keys((key,))[:2]) == 0


@pytest.mark.parametrize("count", [1, 2], ids=["one key", "two keys"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_while_a_free_key_is_asked_for(
    replicas: list[KeyLocks], redis: Redis, key: str, when: str, count: int
) -> None:
    keys = [key, f"{key}:2"][:count]
    gated = gate(replicas[0], f"{when} enter")
    task = asyncio.create_task(hold_forever(replicas[0], keys))
    await gated.reached.wait()
    await cancelled(task)
    gated.go_on.set()
    await assert_free(replicas, redis, keys)


@pytest.mark.parametrize("count", [1, 2], ids=["one key", "two keys"])
@pytest.mark.parametrize("when", ["before enter", "after enter", "queued", "handed over", "held"])
async def test_cancelled_while_another_holds_the_key(
    replicas: list[KeyLocks], redis: Redis, key: str, when: str, count: int
) -> None:
    keys = [key, f"{key}:2"][:count]
    gated = gate(replicas[0], when)
    other = await replicas[1].hold(keys[-1:], wait_s=LONG_S).__aenter__()
    task = asyncio.create_task(hold_forever(replicas[0], keys))
    if when in {"queued", "handed over", "held"}:
        while not await redis.exists(redis_keys((keys[-1],))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    else:
        await gated.reached.wait()
    if when == "handed over":
        deliver = replicas[0].deliver

        def cancel(message: Any) -> None:
            deliver(message)
            task.cancel()

        replicas[0]._channel._deliver = cancel  # type: ignore[union-attr]
    if when in {"handed over", "held"}:
        replicas[1].ended(other)
    if when == "held":
        while await redis.llen(redis_keys((keys[-1],))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
    if when == "handed over":
        with suppress(asyncio.CancelledError):
            await task
    else:
        await cancelled(task)
    gated.go_on.set()
    replicas[1].ended(other)
    await assert_free(replicas, redis, keys)


async def test_cancelled_at_the_moment_of_the_grant(
    replicas: list[KeyLocks], redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has its hold, and is cancelled before it runs again."""
    join = KeyLine.join

    def join_and_cancel(line: KeyLine) -> asyncio.Future[Hold]:
        caller = join(line)
        caller.add_done_callback(lambda _caller: task.cancel())
        return caller

    monkeypatch.setattr(KeyLine, "join", join_and_cancel)
    task = asyncio.create_task(hold_forever(replicas[0], [key]))
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    monkeypatch.undo()
    await assert_free(replicas, redis, [key])


@pytest.mark.parametrize("place", ["before free", "after free", "before pass_on", "after pass_on"])
async def test_cancelled_while_the_key_is_freed(
    replicas: list[KeyLocks], redis: Redis, key: str, place: str
) -> None:
    """A caller joins the line while its release is under way, and leaves before the reply."""
    gated = gate(replicas[0], place)
    hold = await replicas[0].hold([key], wait_s=LONG_S).__aenter__()
    if "pass_on" in place:
        # More callers than have their turns without Redis.
        callers = [asyncio.create_task(_briefly(replicas[0], key)) for _ in range(TURNS_MAX + 1)]
        await asyncio.sleep(0)
        replicas[0].ended(hold)
        await gated.reached.wait()
        for caller in callers:
            if not caller.done():
                await cancelled(caller)
    else:
        replicas[0].ended(hold)
        await gated.reached.wait()
        late = asyncio.create_task(hold_forever(replicas[0], [key]))
        await asyncio.sleep(0)
        await cancelled(late)
    gated.go_on.set()
    await assert_free(replicas, redis, [key])


@pytest.mark.parametrize("place", ["before renew", "after renew"])
async def test_cancelled_while_the_lease_is_renewed(
    valkey_server: ValkeyServer, redis: Redis, key: str, slow_machine: None, place: str
) -> None:
    async with open_key_locks(
        valkey_server.url, "test", waiting=Waiting.HANDOFF, lease_s=LEASE_S
    ) as locks:
        gated = gate(locks, place)
        task = asyncio.create_task(hold_forever(locks, [key]))
        await gated.reached.wait()
        await cancelled(task)
        gated.go_on.set()
        await assert_free([locks], redis, [key])


@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("waiting", [Waiting.SIMPLE, Waiting.SPIN])
@pytest.mark.parametrize("place", ["before enter", "after enter", "before free", "after free"])
async def test_cancelled_at_a_command_of_locks_that_do_not_queue(
    valkey_server: ValkeyServer, redis: Redis, key: str, waiting: Waiting, place: str
) -> None:
    async with open_key_locks(valkey_server.url, "test", waiting=waiting) as locks:
        gated = gate(locks, place)
        wait_s = 0.0 if waiting is Waiting.SIMPLE else LONG_S

        async def briefly() -> None:
            async with locks.hold([key], wait_s=wait_s):
                pass

        task = asyncio.create_task(briefly())
        await gated.reached.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        gated.go_on.set()
        await settled(locks)
        assert await redis.exists(*redis_keys((key,))[:2]) == 0
        await briefly()


async def _briefly(locks: KeyLocks, key: str) -> None:
    async with locks.hold([key], wait_s=LONG_S):
        pass


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_at_random_moments(
    replicas: list[KeyLocks], redis: Redis, key: str, seed: int
) -> None:
    chance = random.Random(seed)
    keys = [f"{key}:{letter}" for letter in "abc"]

    async def work() -> None:
        chosen = chance.sample(keys, chance.randint(1, 2))
        wait_s = chance.choice([0.001, 0.01, LONG_S])
        with suppress(LockBusy):
            async with chance.choice(replicas).hold(chosen, wait_s=wait_s):
                await asyncio.sleep(chance.choice([0.0, 0.002]))

    tasks = [asyncio.create_task(work()) for _ in range(200)]
    while left := [task for task in tasks if not task.done()]:
        if chance.random() < 0.5:
            chance.choice(left).cancel()
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.0005]))
    for task in tasks:
        if not task.cancelled():
            task.result()
    await assert_free(replicas, redis, keys)
