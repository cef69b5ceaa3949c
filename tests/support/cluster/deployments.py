"""A Deployment: its pods, scaling and rolling restarts."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.support.cluster.manifest import Workload
from tests.support.cluster.pods import POLL_S, Pod

NAME_BYTES: Final = 3


class ClusterError(Exception):
    """The cluster did not reach the wanted state. The text names the pod and the reason."""


class Deployment:
    """One Deployment with its pods."""

    def __init__(self, workload: Workload, make_pod: Callable[[Workload, str], Pod]) -> None:
        self.workload = workload
        self.pods: list[Pod] = []
        """Without those that are terminating."""
        self._make_pod = make_pod
        self._terminating: dict[asyncio.Task[None], Pod] = {}
        self._generation = secrets.token_hex(NAME_BYTES)

    def all_pods(self) -> list[Pod]:
        """With those that are terminating."""
        return [*self.pods, *self._terminating.values()]

    def grow(self) -> None:
        """Add a pod without waiting for it."""
        name = f"{self.workload.name}-{self._generation}-{secrets.token_hex(NAME_BYTES)}"
        pod = self._make_pod(self.workload, name)
        self.pods.append(pod)
        pod.start()

    def shrink(self, pod: Pod) -> None:
        """Terminate a pod without waiting for it."""
        self.pods.remove(pod)
        # Before the task runs: no Service has it as an endpoint from now on.
        pod.terminating = True
        task = asyncio.create_task(pod.terminate(), name=f"termination of {pod.name}")
        self._terminating[task] = pod
        task.add_done_callback(self._ended)

    async def lose(self, pod: Pod) -> None:
        """Kill a pod for good and add another; returns when the first is dead."""
        await pod.kill()
        self.pods.remove(pod)
        self.grow()

    async def scale(self, replicas: int, limit_s: float) -> None:
        """Set the number of pods, and wait until all are ready and none is terminating."""
        self.workload = replace(self.workload, replicas=replicas)
        while len(self.pods) < replicas:
            self.grow()
        for pod in self.pods[replicas:]:
            self.shrink(pod)
        await self.settled(limit_s)

    async def settled(self, limit_s: float) -> None:
        """Wait until every pod is ready and none is terminating.

        Raises ClusterError after the limit, or at once if a container ends: none should.
        """
        ends = {pod: len(pod.ends) for pod in self.pods}
        deadline = time.monotonic() + limit_s
        while self._terminating or not all(pod.ready for pod in self.pods):
            for pod in self.all_pods():
                pod.check()
                if len(pod.ends) > ends.get(pod, len(pod.ends)):
                    raise ClusterError(pod.describe())
            if time.monotonic() > deadline:
                self._give_up(limit_s)
            await asyncio.sleep(POLL_S)

    async def rollout(self, limit_s: float) -> None:
        """Replace every pod within maxSurge and maxUnavailable of the strategy.

        As in Kubernetes, the next pod starts while the previous one terminates. Returns when all
        old pods have ended.
        """
        workload = self.workload
        self._generation = secrets.token_hex(NAME_BYTES)
        old, new = list(self.pods), 0
        deadline = time.monotonic() + limit_s
        while old or new < workload.replicas:
            available = sum(pod.available() for pod in self.pods)
            if new < workload.replicas and len(self.pods) < workload.replicas + workload.max_surge:
                self.grow()
                new += 1
            elif old and available > workload.replicas - workload.max_unavailable:
                self.shrink(old.pop(0))
            else:
                if time.monotonic() > deadline:
                    self._give_up(limit_s)
                await asyncio.sleep(POLL_S)
        await self.settled(max(deadline - time.monotonic(), 0.0))

    async def kill(self) -> None:
        """Kill every pod."""
        pods = self.all_pods()
        for task in self._terminating:
            task.cancel()
        await asyncio.gather(*self._terminating, return_exceptions=True)
        await asyncio.gather(*(pod.kill() for pod in pods))
        self.pods.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        pod = self._terminating.pop(task)
        if not task.cancelled() and task.exception() is not None:
            pod.failed_probe = f"its termination failed: {task.exception()!r}"
            self.pods.append(pod)

    def _give_up(self, limit_s: float) -> None:
        late = [pod for pod in self.all_pods() if not pod.serving]
        described = late[0].describe() if late else self.workload.title
        raise ClusterError(f"not settled after {limit_s:.0f} s: {described}")
