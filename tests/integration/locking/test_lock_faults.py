"""Whatever fails, no two processes hold a lock at once, or PostgreSQL refuses the stale write."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from common.locking.key_line import Waiting
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import counting
from tests.integration.locking.worker import Work
from tests.support.fake_server import TcpProxy
from tests.support.lock_workers import Worker, ended, overlaps, worker
from tests.support.waits import until_true

LEASE_S = 0.3


@asynccontextmanager
async def workers(work: Work, count: int) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as exits:
        contexts = [worker(work) for _ in range(count)]
        yield list(await asyncio.gather(*map(exits.enter_async_context, contexts)))


PROCESSES = 3
TASKS = 5


@pytest.mark.parametrize(
    ("waiting", "one_key"),
    [(Waiting.HANDOFF, True), (Waiting.SPIN, True), (Waiting.HANDOFF, False)],
    ids=["handoff", "spin", "control"],
)
async def test_no_two_processes_hold_the_lock_at_once(
    valkey_server: ValkeyServer, key: str, waiting: Waiting, one_key: bool
) -> None:
    """The control: with as many keys as a process has tasks, the same work overlaps."""
    count = 20 if waiting is Waiting.SPIN else 100
    work = Work(
        valkey_server.url,
        key if one_key else "",
        count,
        tasks=TASKS,
        waiting=waiting.name,
        start=f"{key}:ready",
        together=PROCESSES,
    )
    async with workers(work, PROCESSES) as running:
        await asyncio.gather(*map(ended, running))
    held = [one for each in running for one in each.held]
    assert len(held) == PROCESSES * TASKS * count
    assert (overlaps(held) == []) is one_key
    if one_key:
        in_order = sorted(held, key=lambda one: one.began)
        fences = [one.fence for one in in_order]
        assert fences == sorted(set(fences))
        if waiting is Waiting.HANDOFF:
            assert {"message", "local"} <= {one.path for one in held}


async def _flush(redis: Redis, _running: list[Worker]) -> None:
    for _ in range(5):
        await redis.flushall()
        await asyncio.sleep(0.02)


async def _kill_connections(redis: Redis, _running: list[Worker]) -> None:
    for _ in range(5):
        for kind in ("normal", "pubsub"):
            await redis.client_kill_filter(_type=kind, skipme=True)
        await asyncio.sleep(0.02)


async def _pause_clients(redis: Redis, _running: list[Worker]) -> None:
    await redis.client_pause(int(LEASE_S * 1_500))


async def _kill_one(_redis: Redis, running: list[Worker]) -> None:
    running[0].process.kill()


async def _stop_one(_redis: Redis, running: list[Worker]) -> None:
    running[0].process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE_S)
    running[0].process.send_signal(signal.SIGCONT)


FAULTS = [_flush, _kill_connections, _pause_clients, _kill_one, _stop_one]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__[1:])
async def test_no_stale_write_is_accepted_and_the_lock_comes_back(
    valkey_server: ValkeyServer,
    redis: Redis,
    key: str,
    counted: str,
    fault: Callable[[Redis, list[Worker]], Awaitable[None]],
) -> None:
    async with counting(counted, key) as database:
        work = Work(
            valkey_server.url,
            key,
            # More than a second of work, so that the fault comes before its end.
            100,
            hold_s=0.01,
            lease_s=LEASE_S,
            database=counted,
            timeout_s=0.1,
        )
        async with workers(work, 2) as running:
            await running[0].until(lambda: len(running[0].held) >= 3)
            await fault(redis, running)
            survivors = running[1:] if fault is _kill_one else running
            await asyncio.gather(*map(ended, survivors))
            if fault is _kill_one:
                await running[0].process.wait()
        accepted = sum(one.counted for each in running for one in each.held)
        number = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
        # The one that was killed may have written without saying so.
        assert number - accepted in ((0, 1) if fault is _kill_one else (0,))
        assert accepted >= 80


class BadLine(TcpProxy):
    """The connections of one process to Redis, with a fault for the time of some replies."""

    loses = 0
    """How many replies to scripts are lost yet, each with its connection."""
    doubles = 0
    """How many are sent twice yet."""

    async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
        await super().before(data, to_client=to_client, connection=connection)
        if not to_client or not data.startswith(b"*"):
            return
        if self.loses:
            self.loses -= 1
            raise ConnectionResetError
        if self.doubles:
            self.doubles -= 1
            for flow in self.flows:
                if flow.used_s == max(each.used_s for each in self.flows):
                    flow.to_client.write(data)


async def _partition(line: BadLine) -> None:
    line.forwards.clear()
    await asyncio.sleep(2 * LEASE_S)
    line.forwards.set()


async def _lost_replies(line: BadLine) -> None:
    line.loses = 5


async def _doubled_replies(line: BadLine) -> None:
    line.doubles = 20


async def test_a_bad_line_to_redis_lets_no_stale_write_in(
    valkey_server: ValkeyServer, key: str, counted: str
) -> None:
    """A partition, lost and doubled replies, all of one process, which locks again after each."""
    server = f"127.0.0.1:{valkey_server.port}"
    async with counting(counted, key) as database, BadLine.to(server) as line:
        direct = Work(
            *(valkey_server.url, key, 1_000_000),
            hold_s=0.005,
            lease_s=LEASE_S,
            database=counted,
            timeout_s=0.1,
        )
        bad = replace(direct, url=valkey_server.url.replace(server, line.address))
        async with worker(bad) as faulty, worker(direct) as well:
            for fault in (_partition, _lost_replies, _doubled_replies):
                await fault(line)
                await until_true(lambda: not line.loses and not line.doubles)
                for each in (faulty, well):
                    again = len(each.held) + 5
                    await each.until(lambda each=each, again=again: len(each.held) >= again)
        number = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
        accepted = sum(one.counted for each in (faulty, well) for one in each.held)
        # A stale write that is accepted undoes others. Each may have written and not said so yet.
        assert number - accepted in (0, 1, 2)


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "control"])
async def test_the_fence_refuses_the_write_of_a_holder_that_slept(
    valkey_server: ValkeyServer, key: str, counted: str, fenced: bool
) -> None:
    """Without the fence the write of the next holder is lost."""
    async with counting(counted, key) as database:
        slow = Work(
            valkey_server.url, key, 1, hold_s=0.2, lease_s=LEASE_S, database=counted, fenced=fenced
        )
        async with worker(slow) as sleeper:
            await sleeper.until(lambda: sleeper.reading)
            sleeper.process.send_signal(signal.SIGSTOP)
            async with worker(replace(slow, acquisitions=3, hold_s=0.0)) as other:
                await ended(other)
            assert [one.counted for one in other.held] == [True] * 3
            sleeper.process.send_signal(signal.SIGCONT)
            await ended(sleeper)
        assert [(one.lost, one.counted) for one in sleeper.held] == [(True, not fenced)]
        number = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
        assert number == (3 if fenced else 1)
