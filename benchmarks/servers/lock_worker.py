"""A process with waiters for one lock, of whichever library. It takes orders on its input.

``hold KEY`` holds the lock until ``release``; ``wait KEY COUNT`` starts so many waiters, each of
which acquires once and releases at once. Each reply is a line of JSON with times of the machine's
monotonic clock: ``[acquired, released]`` for each waiter, and the latencies of PINGs meanwhile.
``join CHANNEL NEXT`` and ``start CHANNEL HOPS`` pass a number from process to process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

import redis_lock
import uvloop
from pottery import AIORedlock
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.lock import Lock

from common.locking import redis as locking_redis
from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.redis import Script

LEASE_S: Final = 30.0
WAIT_S: Final = 300.0
PING_EVERY_S: Final = 0.005
CONNECTIONS_MAX: Final = 10_000

Held: TypeAlias = Callable[[str], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def opened(library: str, url: str) -> AsyncIterator[Held]:
    """The library's lock on a key, as a context manager."""
    async with AsyncExitStack() as exits:
        if library == "tally":
            locking_redis.TIMEOUT_S = WAIT_S  # type: ignore[misc]
            locks = await exits.enter_async_context(
                open_key_locks(url, "bench", waiting=Waiting.HANDOFF, lease_s=LEASE_S)
            )
            yield lambda key: locks.hold([key], wait_s=WAIT_S, required=True)
            return
        client = await exits.enter_async_context(
            Redis.from_url(url, max_connections=CONNECTIONS_MAX)
        )
        if library == "pottery":
            yield lambda key: AIORedlock(key=key, masters={client}, auto_release_time=LEASE_S)
            return
        sleep_s = {"redis-py": 0.1, "redis-py-1ms": 0.001, "floor": 0.0}[library]
        yield lambda key: Lock(client, key, timeout=LEASE_S, sleep=sleep_s)


@asynccontextmanager
async def in_a_thread(client: BlockingRedis, key: str) -> AsyncIterator[None]:
    """python-redis-lock, which blocks its thread."""
    lock = redis_lock.Lock(client, key, expire=int(LEASE_S))
    await asyncio.to_thread(lock.acquire)
    try:
        yield
    finally:
        await asyncio.to_thread(lock.release)


async def wait_in_tasks(held: Held, key: str, count: int) -> list[tuple[int, int]]:
    times: list[tuple[int, int]] = []

    async def waiter() -> None:
        async with held(key):
            acquired = released = time.monotonic_ns()
        times.append((acquired, released))

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(waiter())
    return times


async def wait_in_threads(client: BlockingRedis, key: str, count: int) -> list[tuple[int, int]]:
    times: list[tuple[int, int]] = []

    def waiter() -> None:
        lock = redis_lock.Lock(client, key, expire=int(LEASE_S))
        lock.acquire()
        acquired = released = time.monotonic_ns()
        lock.release()
        times.append((acquired, released))

    threads = [threading.Thread(target=waiter) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    return times


async def ping(client: Redis, latencies_ms: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await client.ping()
        latencies_ms.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(PING_EVERY_S)


async def orders() -> AsyncIterator[list[str]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield line.decode().split()


def reply(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


HOP: Final = """
redis.call('SET', KEYS[1], ARGV[1])
return redis.call('PUBLISH', KEYS[2], ARGV[1])
"""
"""One script and one publish: the least that passes anything from one process to the next."""


async def pass_round(client: Redis, channel: str, following: str) -> None:
    """Pass on each number that arrives, less one, until it is 0."""
    hop = Script(client, HOP)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                reply(joined=True)
                continue
            left = int(message["data"])
            if left == 0:
                reply(finished=time.monotonic_ns())
            else:
                await hop([f"{channel}:owner", following], left - 1)


class Worker:
    """Carries out the orders."""

    def __init__(self, held: Held, blocking: BlockingRedis | None, probe: Redis) -> None:
        self._held = held
        self._blocking = blocking
        self._probe = probe
        self._hold = AsyncExitStack()

    async def hold(self, key: str) -> None:
        await self._hold.enter_async_context(self._held(key))
        reply(held=True)

    async def release(self) -> None:
        released = time.monotonic_ns()
        await self._hold.aclose()
        reply(released=released)

    async def wait(self, key: str, count: str) -> None:
        pings: list[float] = []
        pinging = asyncio.create_task(ping(self._probe, pings))
        if self._blocking is None:
            times = await wait_in_tasks(self._held, key, int(count))
        else:
            times = await wait_in_threads(self._blocking, key, int(count))
        pinging.cancel()
        reply(times=times, pings=pings)

    async def join(self, channel: str, following: str) -> None:
        await pass_round(self._probe, channel, following)

    async def start(self, channel: str, hops: str) -> None:
        began = time.monotonic_ns()
        await self._probe.publish(channel, hops)
        reply(began=began)


async def main(library: str, url: str) -> None:
    async with AsyncExitStack() as exits:
        probe = await exits.enter_async_context(Redis.from_url(url))
        blocking = None
        if library == "python-redis-lock":
            client = blocking = BlockingRedis.from_url(url, max_connections=CONNECTIONS_MAX)
            held: Held = partial(in_a_thread, client)
        else:
            held = await exits.enter_async_context(opened(library, url))
        worker = Worker(held, blocking, probe)
        reply(ready=True)
        tasks = set()
        async for order, *arguments in orders():
            tasks.add(asyncio.create_task(getattr(worker, order)(*arguments)))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
