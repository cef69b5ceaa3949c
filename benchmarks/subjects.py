"""Everything that can be measured, with one interface: a session that runs one period of load."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from benchmarks.load.clients import Clients, Kind, clients
from benchmarks.load.loop import Sample, closed_loop, fixed_rate
from benchmarks.workloads import Workload

STEPS_PER_S_FIRST: Final = 400
"""For how many steps a workload prepares before its rate is known."""
RESERVE: Final = 2


@dataclass(frozen=True, slots=True)
class Load:
    """One period: callers in a closed loop, or steps at a fixed rate."""

    callers: int
    seconds: float
    per_second: float | None = None

    @property
    def client(self) -> Kind:
        return "grpc" if self.callers == 1 or self.per_second is not None else "http2"


Run: TypeAlias = Callable[[], Awaitable[Sample]]


class Subject(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str: ...

    @property
    def units(self) -> int:
        """Units of work in one step."""

    def session(self, load: Load) -> AbstractAsyncContextManager[Run]:
        """Prepare; what is yielded runs the load once."""


class GrpcSubject:
    """A workload on servers that speak gRPC."""

    def __init__(self, workload: Workload, addresses: Mapping[str, Sequence[str]]) -> None:
        self._workload = workload
        self._addresses = {server: addresses[server] for server in workload.servers}
        self._per_second = float(STEPS_PER_S_FIRST)

    @property
    def name(self) -> str:
        return self._workload.name

    @property
    def units(self) -> int:
        return self._workload.units

    @asynccontextmanager
    async def session(self, load: Load) -> AsyncIterator[Run]:
        async with clients(load.client, self._addresses) as connected:
            steps = math.ceil(self._per_second * load.seconds * RESERVE) + load.callers
            await self._workload.prepare(connected, steps)

            async def run() -> Sample:
                sample = await self._drive(load, connected)
                self._per_second = max(self._per_second, sample.per_second)
                return sample

            yield run

    async def _drive(self, load: Load, connected: Clients) -> Sample:
        async def step() -> None:
            await self._workload.step(connected)

        if load.per_second is not None:
            return await fixed_rate(step, per_second=load.per_second, seconds=load.seconds)
        return await closed_loop(step, callers=load.callers, seconds=load.seconds)
