"""A stack whose replicas reach everything through links, and the faults of a schedule in it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis

from deploy.local.plan import Plan
from deploy.local.processes import Child
from tests.chaos.clocks import STEP_S, Clocks
from tests.chaos.links import Links
from tests.chaos.schedule import (
    AWAY,
    CLOCK,
    DEMOTE,
    FLUSH,
    KILL,
    KINDS,
    PAUSE,
    REPLICAS,
    RESTART,
    SET_BACK,
    SET_FORWARD,
    STANDBY,
    TERMINATE,
    Fault,
)
from tests.faults.stack import FaultyStack, running
from tests.integration.local.test_runner import free_base_port
from tests.support.databases import name_of
from tests.support.standby import Standby

MEET_LIMIT_S = 30.0
"""How much longer a fault lasts if there is nothing that it meets."""
_POLL_S = 0.05
T = TypeVar("T")
Do = Callable[[Fault], Coroutine[Any, Any, bool]]
"""Lets a fault happen and heals it; whether anything was there for it to meet."""


class ChaosStack(FaultyStack):
    """A stack behind links. All its processes are children of one thread of their own."""

    def __init__(
        self,
        data_dir: Path,
        base_port: int,
        links: Links,
        keeper: ThreadPoolExecutor,
        clocks: Clocks | None,
    ) -> None:
        super().__init__(data_dir, base_port)
        self.links = links
        self.clocks = clocks
        """Those of the replicas; None if they cannot be set."""
        self._keeper = keeper

    def environment(self, service: str, replica: int) -> dict[str, str]:
        led = self.links.lead(service, replica, super().environment(service, replica))
        if self.clocks is None:
            return led
        return led | self.clocks.environment(f"{service}-{replica}")

    def address(self, name: str) -> str:
        """The address of a replica such as ``order-1``."""
        service, _, number = name.rpartition("-")
        return self.plan.addresses(service)[int(number)]

    async def kept(self, call: Callable[[], T]) -> T:
        """Make a call that starts processes, while the links still work."""
        return await asyncio.get_running_loop().run_in_executor(self._keeper, call)


@asynccontextmanager
async def opened(
    data_dir: Path, settings: Mapping[str, str], *, clocks: Clocks | None = None
) -> AsyncIterator[ChaosStack]:
    """A new stack with these settings, and with these wall clocks for its replicas."""
    loop, base_port = asyncio.get_running_loop(), free_base_port()
    plan = Plan(data_dir, replicas=REPLICAS, base_port=base_port)
    with ThreadPoolExecutor(max_workers=1) as keeper:
        async with Links.of(plan) as links:

            def make(directory: Path, port: int) -> ChaosStack:
                return ChaosStack(directory, port, links, keeper, clocks)

            runs = running(data_dir, base_port, settings, make)
            stack = await loop.run_in_executor(keeper, runs.__enter__)
            try:
                yield stack
            finally:
                await loop.run_in_executor(keeper, runs.__exit__, None, None, None)


class Faults:
    """Lets the faults of a schedule happen, and counts them."""

    def __init__(self, stack: ChaosStack, repeat_some: Callable[[], Awaitable[None]]) -> None:
        """``repeat_some`` repeats requests that were answered."""
        self._repeat_some = repeat_some
        self.happened: Counter[str] = Counter()
        """By the name of their kind, those that met something."""
        self.deaths: list[str] = []
        """Replicas that ended and were not killed."""
        self.without_standby: list[tuple[float, float]] = []
        """From when to when no COMMIT was on a standby."""
        self._stack = stack
        self._killed: set[int] = set()
        self._kills = asyncio.Lock()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._do: dict[tuple[str, str], Do] = {
            (KILL, "replica"): self._kill,
            (PAUSE, "replica"): self._pause_replica,
            (RESTART, "PostgreSQL"): self._restart_postgres,
            (TERMINATE, "PostgreSQL"): self._terminate,
            (AWAY, STANDBY): self._without_standby,
            (SET_BACK, CLOCK): self._set_clock,
            (SET_FORWARD, CLOCK): self._set_clock,
            (RESTART, "Redis server"): self._restart_redis,
            (FLUSH, "Redis server"): self._flush,
            (PAUSE, "Redis server"): self._pause_redis,
            (DEMOTE, "Redis server"): self._demote,
            (RESTART, "gateway simulator"): self._restart_gateway,
            (PAUSE, "gateway simulator"): self._pause_gateway,
        }

    @property
    def left_out(self) -> list[str]:
        """The kinds that this machine cannot have."""
        return [str(kind) for kind in KINDS if kind.place == CLOCK and self._stack.clocks is None]

    @property
    def missing(self) -> list[str]:
        """The kinds that never happened."""
        happened = {*self.happened, *self.left_out}
        return [str(kind) for kind in KINDS if str(kind) not in happened]

    async def round(self, faults: Iterable[Fault]) -> None:
        """Let them happen at their times; returns when all are healed and all replicas serve."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                if str(fault.kind) not in self.left_out:
                    group.create_task(self._at_its_time(fault, began_s))
        await self._stack.kept(self._restart_dead)
        await self._stack.healthy()

    async def _at_its_time(self, fault: Fault, began_s: float) -> None:
        await asyncio.sleep(began_s + fault.at_s - time.monotonic())
        # One at a time in one place. What has to wait happens a little later.
        async with self._turns[_place_of(fault)]:
            do = self._do.get((fault.kind.action, fault.kind.place), self._fail_links)
            if await do(fault):
                self.happened[str(fault.kind)] += 1

    # -- replicas --------------------------------------------------------------------------------

    async def _kill(self, fault: Fault) -> bool:
        # One after the other: on a slow machine a replica needs long to start.
        async with self._kills:
            child = self._stack.replicas[self._stack.address(fault.target)]
            self._killed.add(child.pid)
            child.send(signal.SIGKILL)
            await asyncio.sleep(fault.duration_s)
            await self._stack.kept(self._restart_dead)
            await self._stack.healthy(self._stack.address(fault.target))
        return True

    def _restart_dead(self) -> None:
        for child in self._stack.restart_dead():
            if child.pid not in self._killed:
                self.deaths.append(f"{child.name} ended by itself: {child.exit_code()}")

    async def _pause_replica(self, fault: Fault) -> bool:
        child = self._stack.replicas[self._stack.address(fault.target)]
        return await _paused(child, fault.duration_s)

    async def _set_clock(self, fault: Fault) -> bool:
        clocks = self._stack.clocks
        assert clocks is not None
        clocks.set(fault.target, -STEP_S if fault.kind.action == SET_BACK else STEP_S)
        await asyncio.sleep(fault.duration_s)
        clocks.set(fault.target, 0)
        return True

    # -- connections -----------------------------------------------------------------------------

    async def _fail_links(self, fault: Fault) -> bool:
        links = list(self._stack.links.between(fault.target, fault.kind.place))
        before = sum(link.hits for link in links)
        for link in links:
            link.fail(fault.kind.action)
        await asyncio.sleep(fault.duration_s)

        def met() -> bool:
            return sum(link.hits for link in links) > before

        until_s = time.monotonic() + MEET_LIMIT_S
        while not met() and time.monotonic() < until_s:  # noqa: ASYNC110 - counted by many links
            await asyncio.sleep(_POLL_S)
        for link in links:
            link.heal()
        return met()

    # -- PostgreSQL ------------------------------------------------------------------------------

    async def _restart_postgres(self, fault: Fault) -> bool:
        postgres = self._stack.postgres
        assert postgres.child is not None
        child = postgres.child
        await self._stack.kept(lambda: child.stop(postgres.kill_signal))
        await asyncio.sleep(fault.duration_s)
        await self._stack.kept(postgres.start)
        return True

    async def _terminate(self, fault: Fault) -> bool:
        name = name_of(self._stack.backends.databases[fault.target])
        statement = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND usename LIKE '%runtime%'"
        )
        until_s = time.monotonic() + MEET_LIMIT_S
        while time.monotonic() < until_s:
            ended = await asyncio.to_thread(self._stack.postgres.run_sql, statement)
            if "t" in ended.split():
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _without_standby(self, fault: Fault) -> bool:
        databases = map(name_of, self._stack.backends.databases.values())
        standby = Standby(self._stack.postgres, databases)
        async with standby.away():
            began_s = time.monotonic()
            while time.monotonic() < began_s + fault.duration_s:
                # What was answered before is still no answer that the standby has.
                await asyncio.gather(self._repeat_some(), asyncio.sleep(_POLL_S))
            waiting = await standby.waiting()
            self.without_standby.append((began_s, time.monotonic()))
        return waiting > 0

    # -- Redis -----------------------------------------------------------------------------------

    async def _restart_redis(self, fault: Fault) -> bool:
        await self._stack.kept(self._stack.kill_redis)
        await asyncio.sleep(fault.duration_s)
        await self._stack.kept(self._stack.redis.start)
        return True

    async def _pause_redis(self, fault: Fault) -> bool:
        assert self._stack.redis.child is not None
        return await _paused(self._stack.redis.child, fault.duration_s)

    async def _flush(self, fault: Fault) -> bool:
        return await self._redis("FLUSHALL")

    async def _demote(self, fault: Fault) -> bool:
        # Of a primary that does not exist: it refuses writes, and keeps what it has.
        demoted = await self._redis("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(fault.duration_s)
        return await self._redis("REPLICAOF", "NO", "ONE") and demoted

    async def _redis(self, *command: str) -> bool:
        async with Redis.from_url(self._stack.redis.url) as client:
            reply = await client.execute_command(*command)  # type: ignore[no-untyped-call]
            return bool(reply)

    # -- the gateway -----------------------------------------------------------------------------

    async def _restart_gateway(self, fault: Fault) -> bool:
        await self._stack.kept(self._stack.gateway.kill)
        await asyncio.sleep(fault.duration_s)
        await self._stack.kept(self._stack.gateway.start)
        return True

    async def _pause_gateway(self, fault: Fault) -> bool:
        return await _paused(self._stack.gateway_child, fault.duration_s)


def _place_of(fault: Fault) -> str:
    """Where it happens. A server and the connections to it are one place; a database is not."""
    place, service = (
        text.replace("-", " ").split()[0] for text in (fault.kind.place, fault.target)
    )
    return f"{place} of {service}" if place in {"database", "replica", "clock"} else place


async def _paused(child: Child, duration_s: float) -> bool:
    child.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(duration_s)
    finally:
        child.send(signal.SIGCONT)
    return True
