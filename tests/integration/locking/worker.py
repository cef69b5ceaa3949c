"""A process that takes a lock over and over, and writes what it held to its output.

Each line is JSON: ``began`` and ``ended`` on the machine's monotonic clock, the fence, the path,
and whether the lock was lost.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

import asyncpg
import uvloop
from redis.asyncio import Redis

from common.locking import redis
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.lock_errors import LockError

WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does. Times are in seconds."""

    url: str
    key: str
    """'' for one of each task."""
    acquisitions: int
    """Of each task; then it ends."""
    tasks: int = 1
    hold_s: float = 0.0
    lease_s: float = 2.0
    waiting: str = Waiting.HANDOFF.name
    database: str = ""
    """Where it counts in the row of the key, or '' for nowhere."""
    fenced: bool = True
    """Whether that row compares the fence."""
    timeout_s: float = WAIT_S
    """Of a command."""
    start: str = ""
    """A key in Redis that counts the workers that are ready, or ''."""
    together: int = 1
    """How many have to be ready before each begins."""


@dataclass(slots=True)
class Held:
    began: int
    ended: int
    fence: int
    path: str
    lost: bool
    counted: bool
    pid: int = 0


READ: Final = {
    True: "UPDATE counted SET fence = $2 WHERE key = $1 AND fence <= $2 RETURNING number",
    False: "SELECT number FROM counted WHERE key = $1 AND $2::bigint > 0",
}
WRITE: Final = {
    True: "UPDATE counted SET number = $3 WHERE key = $1 AND fence = $2",
    False: "UPDATE counted SET number = $3 WHERE key = $1 AND $2::bigint > 0",
}
"""With and without the fence."""


async def count(connection: asyncpg.Connection, work: Work, fence: int) -> bool:
    """Read, wait, and write one more; whether the write was accepted."""
    seen = await connection.fetchval(READ[work.fenced], work.key, fence)
    if seen is None:
        return False
    say(reading=True)
    await asyncio.sleep(work.hold_s)
    written = await connection.execute(WRITE[work.fenced], work.key, fence, seen + 1)
    return bool(written == "UPDATE 1")


async def all_ready(work: Work) -> None:
    """Until all workers that begin together are ready."""
    async with Redis.from_url(work.url) as client:
        ready = await client.incr(work.start)
        while ready < work.together:
            await asyncio.sleep(0.005)
            ready = int(await client.get(work.start) or 0)


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def take(
    locks: KeyLocks, work: Work, connection: asyncpg.Connection | None, key: str
) -> None:
    for _ in range(work.acquisitions):
        try:
            async with locks.hold([key], wait_s=WAIT_S, required=True) as hold:
                began = time.monotonic_ns()
                counted = False
                if connection is not None:
                    counted = await count(connection, work, hold.fence or 0)
                else:
                    await asyncio.sleep(work.hold_s)
                ended = time.monotonic_ns()
                held = Held(began, ended, hold.fence or 0, hold.path, hold.lost, counted)
        except LockError as error:
            say(error=type(error).__name__)
            await asyncio.sleep(0.05)
            continue
        say(**asdict(held))


async def run(work: Work) -> None:
    redis.TIMEOUT_S = work.timeout_s  # type: ignore[misc]
    redis.OPEN_S = 0.05  # type: ignore[misc]
    connection = await asyncpg.connect(work.database) if work.database else None
    waiting = Waiting[work.waiting]
    async with open_key_locks(work.url, "worker", waiting=waiting, lease_s=work.lease_s) as locks:
        while waiting is Waiting.HANDOFF and not locks._channel_ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        say(ready=True)
        if work.start:
            await all_ready(work)
        await asyncio.gather(
            *(
                take(locks, work, connection, work.key or str(number))
                for number in range(work.tasks)
            )
        )
    if connection is not None:
        await connection.close()


if __name__ == "__main__":
    uvloop.run(run(Work(**json.loads(sys.argv[1]))))
