"""A cluster of local processes that does what a rendered overlay says."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.audit.audit import audit
from deploy.audit.look import Report
from deploy.audit.sources import Sources
from tests.support.cluster import backing, dns
from tests.support.cluster.backing import Backing
from tests.support.cluster.containers import Builder, Place
from tests.support.cluster.deployments import ClusterError, Deployment
from tests.support.cluster.manifest import Manifest, ManifestError, Object, Service, Workload, read
from tests.support.cluster.network import DNS_PORT, Addresses, Services
from tests.support.cluster.pods import POLL_S, Pod

STARTING_MAX: Final = 3
"""Containers that start at the same time: their probes' limits are meant for a machine of more
than two cores."""
READY_LIMIT_S: Final = 150.0
JOB_LIMIT_S: Final = 90.0

MakeSecrets = Callable[[Backing], Sequence[Object]]
"""The Secret objects for these servers."""


class Cluster:
    """Made by ``Cluster.start``. To be used in the event loop that it was started in."""

    def __init__(self, manifest: Manifest, directory: Path, servers: Backing) -> None:
        self.manifest = manifest
        self.servers = servers
        self.deployments: dict[str, Deployment] = {}
        self.network = Addresses()
        self.services = Services(manifest.services, self.network, self._endpoints)
        self._directory = directory
        self._builder = Builder(manifest, self.services, self.network.first)
        self._starting = asyncio.Semaphore(STARTING_MAX)

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        objects: Sequence[Object],
        directory: Path,
        *,
        make_secrets: MakeSecrets,
        replicas: Mapping[str, int] | None = None,
        settings: Mapping[str, str] | None = None,
        limit_s: float = READY_LIMIT_S,
    ) -> AsyncIterator[Cluster]:
        """Start everything: migration Jobs first, then every Deployment, all of its pods ready.

        ``replicas`` and ``settings`` are said otherwise than in the manifest: numbers of pods by
        Deployment, and values in its ConfigMaps. Raises ManifestError for what does not hold
        together, and ClusterError for what does not come up; either names the object.
        """
        manifest = read(_changed(objects, replicas or {}, settings or {}))
        servers = [each for each in manifest.workloads.values() if each.program in backing.IMAGES]
        async with contextlib.AsyncExitStack() as stack:
            running = stack.enter_context(backing.running(servers, directory))
            manifest.secrets.update(read(make_secrets(running)).secrets)
            cluster = cls(manifest, directory, running)
            stack.callback(cluster.network.held.close)
            await stack.enter_async_context(dns.serving(cluster.network.held, cluster.services))
            await stack.enter_async_context(cluster.services.proxied())
            stack.push_async_callback(cluster._kill_pods)
            await cluster._come_up(limit_s)
            yield cluster

    def target(self, service: str, port: int | None = None) -> str:
        """The gRPC target of a Service, to be resolved by the cluster's DNS."""
        port = port or next(iter(self.manifest.services[service].ports))
        return f"dns://{self.network.first}:{DNS_PORT}/{service}:{port}"

    def pods(self, deployment: str) -> list[Pod]:
        """Its pods, without those that are ending."""
        return list(self.deployments[deployment].pods)

    async def scale(self, deployment: str, replicas: int) -> None:
        """Have this many pods; returns when they are ready and those to go are gone."""
        await self.deployments[deployment].scale(replicas, READY_LIMIT_S)

    async def rollout(self, deployment: str) -> None:
        """Replace every pod by the Deployment's strategy; returns when the old ones are gone."""
        limit_s = READY_LIMIT_S * max(1, len(self.pods(deployment)))
        await self.deployments[deployment].rollout(limit_s)

    async def kill(self, pod: Pod) -> None:
        """kill -9 of its container; returns when it is dead. The kubelet starts it again."""
        ends = len(pod.ends)
        self.signal(pod, signal.SIGKILL)
        while len(pod.ends) == ends:
            pod.check()
            await asyncio.sleep(POLL_S)

    def signal(self, pod: Pod, number: signal.Signals) -> None:
        """Send a signal to its container's process."""
        os.kill(pod.pid, number)

    async def settled(self) -> None:
        """Wait until every pod of every Deployment is ready and none is ending."""
        for deployment in self.deployments.values():
            await deployment.settled(READY_LIMIT_S)

    async def audit(self) -> Report:
        """What the audit says of the books."""
        urls = {name: urls.audit for name, urls in self.servers.databases.items()}
        return await audit(Sources(urls, self.path_of("gateway", "--data-file")))

    def path_of(self, deployment: str, option: str) -> Path:
        """Where the file is that an option of a Deployment's first pod names."""
        command = self.deployments[deployment].pods[0].process.command
        return Path(command[command.index(option) + 1])

    async def _come_up(self, limit_s: float) -> None:
        own = {
            name: workload
            for name, workload in self.manifest.workloads.items()
            if workload.program not in backing.IMAGES
        }
        for workload in (*self.manifest.jobs, *own.values()):
            # What is wrong in the manifest is told before anything runs.
            self._builder.process(workload, self._place(workload.name, "127.0.0.1", "check"))
        await self._run_jobs()
        for name, workload in own.items():
            deployment = self.deployments[name] = Deployment(workload, self._make_pod)
            for _ in range(workload.replicas):
                deployment.grow()
        for deployment in self.deployments.values():
            await deployment.settled(limit_s)

    async def _run_jobs(self) -> None:
        """Run every Job to its end, all at the same time."""
        pods = [self._make_pod(job, job.name) for job in self.manifest.jobs]
        try:
            await asyncio.gather(*(pod.run_once(JOB_LIMIT_S) for pod in pods))
        finally:
            await asyncio.gather(*(pod.kill() for pod in pods))
        for pod in pods:
            if pod.ends != ["ended with 0"]:
                raise ClusterError(pod.described())

    def _make_pod(self, workload: Workload, name: str) -> Pod:
        place = self._place(name, self.network.new(), "pods")
        return Pod(workload, place, self._builder.process(workload, place), self._starting)

    def _place(self, name: str, address: str, under: str) -> Place:
        directory = self._directory / under / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Place(name, address, directory)

    def _endpoints(self, service: Service) -> list[str]:
        return [
            pod.address
            for deployment in self.deployments.values()
            for pod in deployment.pods
            if pod.serving
            and service.selects(pod.workload.labels)
            and service.namespace == pod.workload.namespace
        ]

    async def _kill_pods(self) -> None:
        await asyncio.gather(*(each.kill() for each in self.deployments.values()))


def _changed(
    objects: Sequence[Object], replicas: Mapping[str, int], settings: Mapping[str, str]
) -> list[Object]:
    """Copies that say these numbers of pods and these values of settings."""
    changed = copy.deepcopy(list(objects))
    workloads = {each["metadata"]["name"]: each for each in changed if each["kind"] == "Deployment"}
    for name, count in replicas.items():
        if name not in workloads:
            raise ManifestError(f"there is no Deployment {name} to have {count} pods")
        workloads[name]["spec"]["replicas"] = count
    for name, value in settings.items():
        holders = [
            each["data"]
            for each in changed
            if each["kind"] == "ConfigMap" and name in (each.get("data") or {})
        ]
        if not holders:
            raise ManifestError(f"no ConfigMap has {name}")
        for data in holders:
            data[name] = value
    return changed
