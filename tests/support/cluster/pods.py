"""A pod, and what the kubelet does for it: probes, restarts, termination."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Final

from deploy.local.processes import Child
from tests.support.cluster.containers import Place, Process
from tests.support.cluster.manifest import Kind, Workload
from tests.support.cluster.network import first
from tests.support.cluster.probes import failure

POLL_S: Final = 0.05
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
"""Kubernetes restarts at once, then waits 10 s, doubled up to 300 s; here a tenth of each."""
KILLED_WAIT_S: Final = 10.0
UNREADY_PERIOD_S: Final = 0.5


class Pod:
    """One pod. Call ``start``, and ``terminate`` or ``kill`` in the same event loop."""

    def __init__(
        self, workload: Workload, place: Place, process: Process, starting: asyncio.Semaphore
    ) -> None:
        """``starting`` limits the containers that start at the same time."""
        self.workload = workload
        self.name = place.name
        self.address = place.address
        self.directory = place.directory
        self.process = process
        self.ready = False
        self.ready_since = 0.0
        """On the monotonic clock."""
        self.terminating = False
        self.ends: list[str] = []
        """How its container ended, each time that it was not terminated."""
        self.failed_probe = ""
        self._last_log = ""
        """The log of the previous container: that of the present one may still be empty."""
        self.child: Child | None = None
        self._starting = starting
        self._kubelet: asyncio.Task[None] | None = None

    @property
    def serving(self) -> bool:
        """Whether it is an endpoint of its Services."""
        return self.ready and not self.terminating

    def available(self) -> bool:
        """Whether it has been ready for minReadySeconds."""
        long_enough = time.monotonic() - self.ready_since >= self.workload.min_ready_s
        return self.serving and long_enough

    @property
    def pid(self) -> int:
        """The process ID of its container."""
        assert self.child is not None
        return self.child.pid

    def describe(self) -> str:
        """The state of the pod in a message, with the end of its log."""
        state = [f"{self.workload.title}, pod {self.name}: {'' if self.ready else 'not '}ready"]
        state += [f"its container {end}" for end in self.ends]
        state += [self.failed_probe] if self.failed_probe else []
        log = (self.child.log_tail() if self.child is not None else "") or self._last_log
        return "; ".join(state) + (f"; its log ends:\n{log}" if log else "")

    def start(self) -> None:
        """Start the container and the kubelet."""
        self._kubelet = asyncio.create_task(self._run(), name=f"kubelet of {self.name}")

    async def run_once(self, limit_s: float) -> None:
        """Run the container to its end, as a Job does, and add it to ``ends``.

        ``starting`` does not limit it: the containers that start may be waiting for the Job.
        """
        self._start_container()
        if not await self._ended_within(limit_s):
            self.ends.append(f"did not end within {limit_s:.0f} s")
            return
        assert self.child is not None
        self.ends.append(await self._exit(self.child))

    def check(self) -> None:
        """Raise an error of the simulated kubelet itself."""
        if self._kubelet is not None and self._kubelet.done() and not self._kubelet.cancelled():
            self._kubelet.result()

    async def kill(self) -> None:
        """Kill it, as the loss of its node would."""
        self.terminating = True
        await self._stop_kubelet()
        if self.child is not None and self.child.exit_code() is None:
            self.child.send(signal.SIGKILL)
            assert await self._ended_within(KILLED_WAIT_S)

    async def terminate(self) -> None:
        """preStop, SIGTERM, and after the grace period SIGKILL. Returns when it has ended."""
        self.terminating = True
        await self._stop_kubelet()
        await self._stop_container()

    async def _stop_kubelet(self) -> None:
        if self._kubelet is not None:
            self._kubelet.cancel()
            await asyncio.gather(self._kubelet, return_exceptions=True)

    async def _run(self) -> None:
        """Run the container, and restart it whenever it ends."""
        while True:
            end = await self._run_container()
            await self._stop_container()
            self._last_log = self.child.log_tail() if self.child is not None else ""
            self.ends.append(end)
            if len(self.ends) > 1:
                backoff_s = BACKOFF_FIRST_S * 2.0 ** (len(self.ends) - 2)
                await asyncio.sleep(min(backoff_s, BACKOFF_MAX_S))

    async def _run_container(self) -> str:
        """Start and probe the container; returns how it ended."""
        # One of the slots of containers that start, until this one is ready or has ended.
        async with AsyncExitStack() as slot:
            await slot.enter_async_context(self._starting)
            child = self._start_container()
            try:
                return await first(self._exit(child), self._probing(slot))
            finally:
                self.ready = False

    def _start_container(self) -> Child:
        self.child = Child(
            self.name,
            self.process.confined,
            log_file=self.directory / "log",
            env=self.process.environment,
            cwd=self.process.directory,
        )
        return self.child

    async def _exit(self, child: Child) -> str:
        while (code := child.exit_code()) is None:  # noqa: ASYNC110 - Popen has no event
            await asyncio.sleep(POLL_S)
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    async def _probing(self, slot: AsyncExitStack) -> str:
        """Probe until the container must be restarted; returns why."""
        probes = self.workload.container.probes
        if "startup" in probes and (failed := await self._failing("startup", until_passed=True)):
            return failed
        following = [self._follow_readiness(slot)]
        following += [self._failing("liveness")] if "liveness" in probes else []
        return await first(*following)

    async def _failing(self, kind: Kind, *, until_passed: bool = False) -> str:
        """Returns why the probe has failed too often, or '' if it may end by passing."""
        failures = 0
        async for failed in self._results(kind):
            if until_passed and not failed:
                break
            failures = failures + 1 if failed else 0
            if failures >= self.workload.container.probes[kind].failures_max:
                return f"was given up: {failed}"
        return ""

    async def _follow_readiness(self, slot: AsyncExitStack) -> str:
        """Never returns."""
        probe = self.workload.container.probes.get("readiness")
        if probe is None:
            await self._become_ready(slot)
            await asyncio.Event().wait()
            raise AssertionError
        failures = successes = 0
        async for failed in self._results("readiness"):
            failures, successes = (failures + 1, 0) if failed else (0, successes + 1)
            if successes >= probe.successes and not self.ready:
                await self._become_ready(slot)
            if failures >= probe.failures_max:
                self.ready = False
        raise AssertionError

    async def _become_ready(self, slot: AsyncExitStack) -> None:
        self.ready, self.ready_since, self.failed_probe = True, time.monotonic(), ""
        await slot.aclose()

    async def _results(self, kind: Kind) -> AsyncIterator[str]:
        """Probe again and again: '' if it passed, or what failed."""
        probe = self.workload.container.probes[kind]
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            if reason := await failure(probe, self.address):
                self.failed_probe = f"{kind}Probe: {reason}"
            yield self.failed_probe if reason else ""
            # As the kubelet, more often while it is not ready.
            often = kind == "readiness" and not self.ready
            await asyncio.sleep(min(probe.period_s, UNREADY_PERIOD_S) if often else probe.period_s)

    async def _stop_container(self) -> None:
        if self.child is None or self.child.exit_code() is not None:
            return
        container, started = self.workload.container, time.monotonic()
        await asyncio.sleep(container.pre_stop_s)
        with suppress(ProcessLookupError):
            self.child.send(signal.SIGTERM)
        left_s = self.workload.grace_s - (time.monotonic() - started)
        if not await self._ended_within(max(left_s, 0.0)):
            self.ends.append("outlived its grace period")
            self.child.send(signal.SIGKILL)
            assert await self._ended_within(KILLED_WAIT_S)

    async def _ended_within(self, limit_s: float) -> bool:
        assert self.child is not None
        try:
            async with asyncio.timeout(limit_s):
                await self._exit(self.child)
        except TimeoutError:
            return False
        return True
