"""A cluster of local processes for a rendered overlay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

from deploy.audit.audit import audit
from deploy.audit.report import Report
from deploy.audit.sources import Sources
from deploy.kubernetes.secrets import secret_objects
from deploy.local.plan import Backends
from tests.support.cluster import backing, dns
from tests.support.cluster.changes import Changes
from tests.support.cluster.containers import Builder, Place
from tests.support.cluster.deployments import ClusterError, Deployment
from tests.support.cluster.manifest import Manifest, Object, Service, Workload, read
from tests.support.cluster.network import DNS_PORT, Addresses, Services
from tests.support.cluster.pods import POLL_S, Pod

STARTING_MAX: Final = 3
"""Containers that start at the same time. The probes' limits allow for no more on two cores."""
READY_LIMIT_S: Final = 150.0
JOB_LIMIT_S: Final = 90.0

NONE: Final = Changes()
MakeSecrets = Callable[[Backends], Sequence[Object]]
"""Makes the Secret objects for these servers."""


class Cluster:
    """A running overlay. Use it in the event loop of ``Cluster.start``."""

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self.manifest = manifest
        self.backends = backing.NOWHERE
        self.deployments: dict[str, Deployment] = {}
        self.network = Addresses()
        self.services = Services(manifest.services, self.network, self._endpoints)
        self.names = dns.Names(self.services)
        self._directory = directory
        self._builder = Builder(manifest, self.services, self.network.first)
        self._starting = asyncio.Semaphore(STARTING_MAX)

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        objects: Sequence[Object],
        directory: Path,
        changes: Changes = NONE,
        make_secrets: MakeSecrets = secret_objects,
        *,
        limit_s: float = READY_LIMIT_S,
        migrations_first: bool = True,
    ) -> AsyncIterator[Cluster]:
        """Start the migration Jobs, then every Deployment, until all pods are ready.

        Without ``migrations_first`` everything starts at once, as with ``kubectl apply``, and the
        Jobs last: servers then find databases without a schema. ``make_secrets`` makes the Secrets,
        which are not in the manifest. Raises ManifestError for an inconsistent manifest and
        ClusterError for an object that does not become ready; both name the object.
        """
        cluster = cls(read(changes.applied_to(objects)), directory)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(cluster.network.held.close)
            cluster._use(backing.NOWHERE, make_secrets)
            # Errors of the manifest are raised before anything runs.
            cluster._check_processes()
            workloads = cluster.manifest.workloads.values()
            cluster._use(stack.enter_context(backing.running(workloads, directory)), make_secrets)
            await stack.enter_async_context(dns.serving(cluster.network.held, cluster.names))
            await stack.enter_async_context(cluster.services.proxied())
            stack.push_async_callback(cluster._kill_pods)
            await cluster._come_up(limit_s, migrations_first=migrations_first)
            yield cluster

    def target(self, service: str, port: int | None = None) -> str:
        """The gRPC target of a Service, resolved by the cluster's DNS."""
        port = port or next(iter(self.manifest.services[service].ports))
        return f"dns://{self.network.first}:{DNS_PORT}/{service}:{port}"

    def pods(self, deployment: str) -> list[Pod]:
        """The pods of a Deployment, without those that are terminating."""
        return list(self.deployments[deployment].pods)

    async def scale(self, deployment: str, replicas: int) -> None:
        """Set the number of pods; returns when all are ready and the others have ended."""
        await self.deployments[deployment].scale(replicas, READY_LIMIT_S)

    async def rollout(self, deployment: str) -> None:
        """Replace every pod by the Deployment's strategy; returns when the old ones have ended."""
        limit_s = READY_LIMIT_S * max(1, len(self.pods(deployment)))
        await self.deployments[deployment].rollout(limit_s)

    async def kill(self, pod: Pod) -> None:
        """Kill the container with SIGKILL; returns when it is dead. The kubelet restarts it."""
        ends = len(pod.ends)
        self.signal(pod, signal.SIGKILL)
        while len(pod.ends) == ends:
            pod.check()
            await asyncio.sleep(POLL_S)

    async def lose(self, pod: Pod) -> None:
        """Kill a pod permanently; another pod, at another address, replaces it."""
        await self.deployments[pod.workload.name].lose(pod)

    def signal(self, pod: Pod, number: signal.Signals) -> None:
        """Send a signal to the process of the container."""
        os.kill(pod.pid, number)

    async def settled(self) -> None:
        """Wait until every pod of every Deployment is ready and none is terminating."""
        for deployment in self.deployments.values():
            await deployment.settled(READY_LIMIT_S)

    async def audit(self) -> Report:
        """Run the audit of the databases and the gateway."""
        urls = {name: urls.audit for name, urls in self.backends.databases.items()}
        return await audit(Sources(urls, self.path_of("gateway", "--data-file")))

    def path_of(self, deployment: str, option: str) -> Path:
        """The file that an option in the command of a Deployment's first pod names."""
        command = self.deployments[deployment].pods[0].process.command
        return Path(command[command.index(option) + 1])

    def _own(self) -> list[Workload]:
        """The workloads other than PostgreSQL and Redis."""
        every = self.manifest.workloads.values()
        return [workload for workload in every if workload.program not in backing.IMAGES]

    def _use(self, backends: Backends, make_secrets: MakeSecrets) -> None:
        self.backends = backends
        self.manifest.secrets.update(read(make_secrets(backends)).secrets)

    def _check_processes(self) -> None:
        for workload in (*self.manifest.jobs, *self._own()):
            self._builder.process(workload, self._place(workload.name, "127.0.0.1", "check"))

    async def _come_up(self, limit_s: float, *, migrations_first: bool) -> None:
        if migrations_first:
            await self._run_jobs()
        for workload in self._own():
            deployment = Deployment(workload, self._make_pod)
            self.deployments[workload.name] = deployment
            for _ in range(workload.replicas):
                deployment.grow()
        if not migrations_first:
            await self._servers_without_schema()
            await self._run_jobs()
        for deployment in self.deployments.values():
            await deployment.settled(limit_s)

    async def _servers_without_schema(self) -> None:
        """Wait until as many servers as start at a time report NOT_SERVING."""
        async with asyncio.timeout(JOB_LIMIT_S):
            while True:
                pods = [pod for each in self.deployments.values() for pod in each.pods]
                if sum("NOT_SERVING" in pod.failed_probe for pod in pods) >= STARTING_MAX:
                    return
                await asyncio.sleep(POLL_S)

    async def _run_jobs(self) -> None:
        """Run all Jobs at the same time to their ends."""
        pods = [self._make_pod(job, job.name) for job in self.manifest.jobs]
        try:
            await asyncio.gather(*(pod.run_once(JOB_LIMIT_S) for pod in pods))
        finally:
            await asyncio.gather(*(pod.kill() for pod in pods))
        for pod in pods:
            if pod.ends != ["ended with 0"]:
                raise ClusterError(pod.describe())

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
