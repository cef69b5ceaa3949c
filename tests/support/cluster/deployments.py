"""A Deployment: as many pods as it says, and rolling restarts by its own rules."""

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
    """The cluster did not come to the state that it should; the text says which pod and why."""


class Deployment:
    """One Deployment, and the pods that it has or had."""

    def __init__(self, workload: Workload, make_pod: Callable[[Workload, str], Pod]) -> None:
        self.workload = workload
        self.pods: list[Pod] = []
        """Those that are to stay."""
        self._make_pod = make_pod
        self._ending: dict[asyncio.Task[None], Pod] = {}
        self._generation = secrets.token_hex(NAME_BYTES)

    def all_pods(self) -> list[Pod]:
        """Those that are ending included."""
        return [*self.pods, *self._ending.values()]

    def grow(self) -> None:
        """Add a pod, and do not wait for it."""
        name = f"{self.workload.name}-{self._generation}-{secrets.token_hex(NAME_BYTES)}"
        pod = self._make_pod(self.workload, name)
        self.pods.append(pod)
        pod.start()

    def shrink(self, pod: Pod) -> None:
        """Begin to end a pod, and do not wait for it."""
        self.pods.remove(pod)
        # Before the task runs: from now on no Service names it.
        pod.terminating = True
        task = asyncio.create_task(pod.terminate(), name=f"end of {pod.name}")
        self._ending[task] = pod
        task.add_done_callback(self._ended)

    async def lose(self, pod: Pod) -> None:
        """Kill a pod for good and add another; returns when the first is dead."""
        await pod.kill()
        self.pods.remove(pod)
        self.grow()

    async def scale(self, replicas: int, limit_s: float) -> None:
        """Have this many pods, all ready, and none that is still ending."""
        self.workload = replace(self.workload, replicas=replicas)
        while len(self.pods) < replicas:
            self.grow()
        for pod in self.pods[replicas:]:
            self.shrink(pod)
        await self.settled(limit_s)

    async def settled(self, limit_s: float) -> None:
        """Wait until every pod is ready and none is ending. Raises ClusterError.

        At once if a container ends, too: none has a reason to.
        """
        ends = {pod: len(pod.ends) for pod in self.pods}
        deadline = time.monotonic() + limit_s
        while self._ending or not all(pod.ready for pod in self.pods):
            for pod in self.all_pods():
                pod.check()
                if len(pod.ends) > ends.get(pod, len(pod.ends)):
                    raise ClusterError(pod.described())
            if time.monotonic() > deadline:
                self._give_up(limit_s)
            await asyncio.sleep(POLL_S)

    async def rollout(self, limit_s: float) -> None:
        """Replace every pod, never fewer available and never more than the strategy allows.

        As Kubernetes, it does not wait for one that is ending before it starts the next; it
        returns when all have ended.
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
        """End every pod as the loss of its node would."""
        pods = self.all_pods()
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.gather(*(pod.kill() for pod in pods))
        self.pods.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        pod = self._ending.pop(task)
        if not task.cancelled() and task.exception() is not None:
            pod.trouble = f"its end failed: {task.exception()!r}"
            self.pods.append(pod)

    def _give_up(self, limit_s: float) -> None:
        late = [pod for pod in self.all_pods() if not pod.serving]
        told = "\n".join(pod.described() for pod in late[:1]) or self.workload.told
        raise ClusterError(f"not settled after {limit_s:.0f} s: {told}")
