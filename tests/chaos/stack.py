"""A stack whose replicas reach everything through links, and the faults of a schedule in it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis

from deploy.local.plan import Plan
from deploy.local.processes import Child
from tests.chaos.links import Links
from tests.chaos.schedule import (
    DEMOTE,
    FLUSH,
    KILL,
    KINDS,
    PAUSE,
    REPLICAS,
    RESTART,
    TERMINATE,
    Fault,
)
from tests.faults.stack import FaultyStack, running
from tests.integration.local.test_runner import free_base_port
from tests.support.databases import name_of

MEET_LIMIT_S = 30.0
"""How much longer a fault lasts if there is nothing that it meets."""
_POLL_S = 0.05
T = TypeVar("T")
Do = Callable[[Fault], Coroutine[Any, Any, bool]]
"""Lets a fault happen and heals it; whether anything was there for it to meet."""


class ChaosStack(FaultyStack):
    """A stack behind links. All its processes are children of one thread of their own."""

    def __init__(
        self, data_dir: Path, base_port: int, links: Links, keeper: ThreadPoolExecutor
    ) -> None:
        super().__init__(data_dir, base_port)
        self.links = links
        self._keeper = keeper

    def environment(self, service: str, replica: int) -> dict[str, str]:
        return self.links.lead(service, replica, super().environment(service, replica))

    def address(self, name: str) -> str:
        """The address of a replica such as ``order-1``."""
        service, _, number = name.rpartition("-")
        return self.plan.addresses(service)[int(number)]

    async def kept(self, call: Callable[[], T]) -> T:
        """Make a call that starts processes, while the links still work."""
        return await asyncio.get_running_loop().run_in_executor(self._keeper, call)


@asynccontextmanager
async def opened(data_dir: Path, settings: Mapping[str, str]) -> AsyncIterator[ChaosStack]:
    """A new stack with these settings."""
    loop, base_port = asyncio.get_running_loop(), free_base_port()
    plan = Plan(data_dir, replicas=REPLICAS, base_port=base_port)
    with ThreadPoolExecutor(max_workers=1) as keeper:
        async with Links.of(plan) as links:

            def make(directory: Path, port: int) -> ChaosStack:
                return ChaosStack(directory, port, links, keeper)

            runs = running(data_dir, base_port, settings, make)
            stack = await loop.run_in_executor(keeper, runs.__enter__)
            try:
                yield stack
            finally:
                await loop.run_in_executor(keeper, runs.__exit__, None, None, None)


class Faults:
    """Lets the faults of a schedule happen, and counts them."""

    def __init__(self, stack: ChaosStack) -> None:
        self.happened: Counter[str] = Counter()
        """By the name of their kind, those that met something."""
        self.deaths: list[str] = []
        """Replicas that ended and were not killed."""
        self._stack = stack
        self._killed: set[int] = set()
        self._kills = asyncio.Lock()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._do: dict[tuple[str, str], Do] = {
            (KILL, "replica"): self._kill,
            (PAUSE, "replica"): self._pause_replica,
            (RESTART, "PostgreSQL"): self._restart_postgres,
            (TERMINATE, "PostgreSQL"): self._terminate,
            (RESTART, "Redis server"): self._restart_redis,
            (FLUSH, "Redis server"): self._flush,
            (PAUSE, "Redis server"): self._pause_redis,
            (DEMOTE, "Redis server"): self._demote,
            (RESTART, "gateway simulator"): self._restart_gateway,
            (PAUSE, "gateway simulator"): self._pause_gateway,
        }

    @property
    def missing(self) -> list[str]:
        """The kinds that never happened."""
        return [str(kind) for kind in KINDS if not self.happened[str(kind)]]

    async def round(self, faults: Iterable[Fault]) -> None:
        """Let them happen at their times; returns when all are healed and all replicas serve."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._at_its_time(fault, began_s))
        await self._stack.kept(self._restart_dead)
        await self._stack.healthy()

    async def _at_its_time(self, fault: Fault, began_s: float) -> None:
        await asyncio.sleep(began_s + fault.at_s - time.monotonic())
        # One at a time in one place. What has to wait happens a little later.
        async with self._turns[_place_of(fault)]:
            do = self._do.get((fault.kind.action, fault.kind.place), self._fail_links)
            self.happened[str(fault.kind)] += await do(fault)

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
    return f"{place} of {service}" if place in {"database", "replica"} else place


async def _paused(child: Child, duration_s: float) -> bool:
    child.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(duration_s)
    finally:
        child.send(signal.SIGCONT)
    return True
