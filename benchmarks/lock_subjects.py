"""Locks as subjects: handoffs between waiters of several processes, and locks that are free."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.load.loop import Sample, Step, closed_loop
from benchmarks.subjects import Load, Run
from common.ids import new_id
from common.locking import key_scripts
from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.redis import Script, open_server
from deploy.local.plan import PROJECT

WORKER: Final = "benchmarks.servers.lock_worker"
PROCESSES: Final = 4
QUEUED_S: Final = 0.05
QUEUED_EACH_S: Final = 0.0005
"""How long waiters get to begin to wait, all and each."""
ROUND_S: Final = 30.0
ROUND_EACH_S: Final = 0.2
"""How long a round may take, all and each: several times as long as with the slowest library."""
KEYS: Final = 64
LEASE_MS: Final = 2_000
HOPS_S: Final = 0.2
"""How long one run of hops takes, once their rate is known."""


@dataclass(frozen=True, slots=True)
class Handoffs:
    """N waiters over several processes acquire once each, while a lock passes from one to another.

    A step is a handoff: from the release of one waiter to the acquisition of the next. ``pings``:
    report the latencies of PINGs that the same processes send meanwhile, not those of the steps.
    """

    name: str
    library: str
    redis_url: str
    pings: bool = False
    units: int = 1

    @asynccontextmanager
    async def session(self, load: Load) -> AsyncIterator[Run]:
        async with AsyncExitStack() as exits:
            count = min(PROCESSES, load.callers)
            workers = [
                await exits.enter_async_context(_worker(self.library, self.redis_url))
                for _ in range(count)
            ]
            shares = [load.callers // count + (n < load.callers % count) for n in range(count)]

            async def run() -> Sample:
                sample = Sample()
                limit_s = ROUND_S + ROUND_EACH_S * load.callers
                while sample.seconds < load.seconds:
                    try:
                        async with asyncio.timeout(limit_s):
                            await self._round(workers, shares, sample)
                    except TimeoutError:
                        # A library that lost a wake-up would keep its waiters until its lease ends,
                        # or for ever.
                        sample.failed["a waiter did not acquire in time"] += load.callers
                        sample.seconds += limit_s
                        break
                return sample

            yield run

    async def _round(
        self, workers: Sequence[_Worker], shares: Sequence[int], sample: Sample
    ) -> None:
        key = f"bench:{new_id()}"
        await workers[0].ask("hold", key)
        waiting = [
            asyncio.create_task(worker.ask("wait", key, str(share)))
            for worker, share in zip(workers[1:], shares[1:], strict=True)
        ]
        # The first process holds the lock, and waits for it too.
        await workers[0].order("wait", key, str(shares[0]))
        await asyncio.sleep(QUEUED_S + QUEUED_EACH_S * sum(shares))
        await workers[0].order("release")
        replies = await asyncio.gather(*waiting)
        own = [await workers[0].reply() for _ in range(2)]
        began = next(each["released"] for each in own if "released" in each)
        replies += [each for each in own if "times" in each]
        times = sorted(tuple(pair) for each in replies for pair in each["times"])
        sample.seconds += (times[-1][0] - began) / 1e9
        released = [began, *(pair[1] for pair in times)]
        latencies_s = [
            max(0, acquired - before) / 1e9
            for before, (acquired, _) in zip(released, times, strict=False)
        ]
        if self.pings:
            latencies_s = [ms / 1000 for each in replies for ms in each["pings"]]
        sample.latencies_s += latencies_s


@dataclass(slots=True)
class _Worker:
    process: asyncio.subprocess.Process

    async def order(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(words) + "\n").encode())
        await self.process.stdin.drain()

    async def reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while not (line := await self.process.stdout.readline()).startswith(b"{"):
            if not line:
                raise RuntimeError("a process of the lock benchmark has ended")
        return dict(json.loads(line))

    async def ask(self, *words: str) -> dict[str, Any]:
        await self.order(*words)
        return await self.reply()


@asynccontextmanager
async def _worker(*arguments: str) -> AsyncIterator[_Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", WORKER, *arguments),
        cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        worker = _Worker(process)
        await worker.reply()
        yield worker
    finally:
        process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Floor:
    """A number that goes from process to process, by one script and one publish each time."""

    redis_url: str
    name: str = "one script and one publish"
    units: int = 1

    @asynccontextmanager
    async def session(self, load: Load) -> AsyncIterator[Run]:
        async with AsyncExitStack() as exits:
            workers = [
                await exits.enter_async_context(_worker("floor", self.redis_url))
                for _ in range(max(2, min(PROCESSES, load.callers)))
            ]
            channels = [f"bench:{new_id()}" for _ in workers]
            for worker, own, following in zip(
                workers, channels, [*channels[1:], channels[0]], strict=True
            ):
                await worker.ask("join", own, following)
            hops = load.callers

            async def run() -> Sample:
                nonlocal hops
                sample = Sample()
                while sample.seconds < load.seconds:
                    began = await workers[0].ask("start", channels[0], str(hops))
                    finished = await workers[hops % len(workers)].reply()
                    took_s = (finished["finished"] - began["began"]) / 1e9
                    sample.seconds += took_s
                    sample.latencies_s += [took_s / hops] * hops
                    hops = max(hops, round(HOPS_S * hops / took_s))
                return sample

            yield run


@dataclass(frozen=True, slots=True)
class Uncontended:
    """One caller that locks one key after the other; nobody else wants them."""

    redis_url: str
    raw: bool
    """Two calls of the same scripts, and nothing else."""
    units: int = 1

    @property
    def name(self) -> str:
        return "two script calls" if self.raw else "a lock without contention"

    @asynccontextmanager
    async def session(self, load: Load) -> AsyncIterator[Run]:
        keys = itertools.cycle([f"bench:{new_id()}" for _ in range(KEYS)])
        async with AsyncExitStack() as exits:
            step = await (self._scripts if self.raw else self._locks)(keys, exits)

            async def run() -> Sample:
                return await closed_loop(step, callers=load.callers, seconds=load.seconds)

            yield run

    async def _locks(self, keys: Iterator[str], exits: AsyncExitStack) -> Step:
        locks = await exits.enter_async_context(
            open_key_locks(self.redis_url, "bench", waiting=Waiting.HANDOFF)
        )

        async def step() -> None:
            async with locks.hold([next(keys)], wait_s=1.0, required=True):
                pass

        return step

    async def _scripts(self, keys: Iterator[str], exits: AsyncExitStack) -> Step:
        redis = await exits.enter_async_context(open_server(self.redis_url))
        enter, free = Script(redis, key_scripts.ENTER), Script(redis, key_scripts.FREE)
        owner, numbers = new_id(), itertools.count(1)

        async def step() -> None:
            number = next(numbers)
            id_, names = f"{owner}:{number}", key_scripts.redis_keys((next(keys),))
            await enter(names, LEASE_MS, id_, number, 1)
            await free(names, LEASE_MS, id_, number)

        return step
