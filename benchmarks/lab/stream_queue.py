"""A queue on a Redis stream: the requests for one row go through one consumer, in order.

It stands for a partitioned log such as Kafka. It is the lab's own, as small as the comparison
allows: no takeover of a dead consumer, no fence, no retention.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import astuple
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from benchmarks.lab.size import Request

GROUP: Final = "lab"
READ_MAX: Final = 100
"""Entries that a consumer reads at once."""
BLOCK_MS: Final = 500

Consume = Callable[[Request], Awaitable[bool]]
"""Carries a request out, with nobody beside it; returns whether it succeeded."""


class StreamQueue:
    """One process's end: it enqueues, waits for outcomes, and consumes its own partition."""

    def __init__(self, redis: Redis, process: int, processes: int, consume: Consume) -> None:
        self._redis = redis
        self._process = process
        self._processes = processes
        self._consume = consume
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self.closed = False

    async def put(self, request: Request) -> bool:
        """Enqueue the request and wait for its outcome: whether it succeeded."""
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[request.number] = outcome
        entry = json.dumps([self._process, *astuple(request)])
        await self._redis.xadd(_stream(request.thing % self._processes), {"request": entry})
        return await outcome

    async def consume(self) -> None:
        """Carry out this process's partition, one request at a time, until the queue is closed."""
        stream = _stream(self._process)
        # The client library may swallow a cancellation that meets a reply: hence the flag.
        while not self.closed:
            read: Any = await self._redis.xreadgroup(
                GROUP, "lab", {stream: ">"}, count=READ_MAX, block=BLOCK_MS
            )
            for _, entries in read or []:
                for id_, entry in entries:
                    sender, *values = json.loads(entry["request"])
                    request = Request(*values)
                    done = await self._consume(request)
                    async with self._redis.pipeline(transaction=False) as pipe:
                        pipe.xack(stream, GROUP, id_)
                        pipe.publish(_replies(sender), f"{request.number} {int(done)}")
                        await pipe.execute()

    def fail(self, ended: asyncio.Task[None]) -> None:
        """Let those who wait have the error of a task that has ended."""
        if ended.cancelled() or (error := ended.exception()) is None:
            return
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)

    async def receive(self, subscribed: asyncio.Event) -> None:
        """Give the outcomes to those who wait for them, for ever."""
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(_replies(self._process))
            async for message in pubsub.listen():
                if message["type"] == "subscribe":
                    subscribed.set()
                    continue
                number, done = str(message["data"]).split()
                waiting = self._waiting.pop(int(number), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(done == "1")


@asynccontextmanager
async def open_queue(
    redis: Redis, process: int, processes: int, consume: Consume
) -> AsyncIterator[StreamQueue]:
    """The queue of a cell, ready to enqueue; each process consumes the partition of its number."""
    try:
        await redis.xgroup_create(_stream(process), GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    queue = StreamQueue(redis, process, processes, consume)
    subscribed = asyncio.Event()
    tasks = [
        asyncio.create_task(queue.receive(subscribed)),
        asyncio.create_task(queue.consume()),
    ]
    for task in tasks:
        task.add_done_callback(queue.fail)
    try:
        await subscribed.wait()
        yield queue
    finally:
        queue.closed = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _stream(partition: int) -> str:
    return f"lab:stream:{partition}"


def _replies(process: int) -> str:
    return f"lab:replies:{process}"
