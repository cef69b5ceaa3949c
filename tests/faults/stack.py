"""The whole stack on this machine, whose processes fail and are restarted one by one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import grpc

from common import failpoints
from common.rpc.probe import status_of
from deploy.audit.audit import Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.sources import Sources
from deploy.audit.table import as_text
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.plan import (
    GATEWAY_RECORD,
    Plan,
    use_own_servers,
)
from deploy.local.postgres import PostgresServer
from deploy.local.processes import Child, stop_all
from deploy.local.stack import SERVICE_STOP_LIMIT_S, Stack
from deploy.local.valkey import ValkeyServer

READY_LIMIT_S: Final = 120.0
_POLL_S: Final = 0.05
S = TypeVar("S", bound="FaultyStack")


class FaultyStack(Stack):
    """A stack with failpoints, which restarts what has died when it is asked to."""

    def __init__(self, data_dir: Path, base_port: int) -> None:
        plan = Plan(data_dir, replicas=2, base_port=base_port, gateway_latency_ms=(20, 80))
        super().__init__(plan, lambda _line: None)
        self.failpoints = data_dir / "failpoints"
        self.restarts = 0
        self._restarted: list[Child] = []

    def stop(self) -> None:
        stop_all(self._restarted, grace_s=SERVICE_STOP_LIMIT_S)
        super().stop()

    # -- processes -------------------------------------------------------------------------------

    def restart_dead(self) -> list[Child]:
        """Restart the replicas that have ended; returns those that had."""
        dead = []
        for service in self.plan.services:
            for replica, address in enumerate(self.plan.addresses(service)):
                child = self.replicas[address]
                if child.exit_code() is None:
                    continue
                dead.append(child)
                environment = self.environment(service, replica)
                started = self._spawn(f"{service}-{replica}", [f"{service}_service"], environment)
                self.replicas[address] = started
                self._restarted.append(started)
                self.restarts += 1
        return dead

    async def healthy(self, *addresses: str) -> None:
        """Wait until these replicas serve, or all. Raises TimeoutError."""
        async with asyncio.timeout(READY_LIMIT_S):
            for address in addresses or self.replicas:
                while not await asyncio.to_thread(_serves, address):  # noqa: ASYNC110 - a server
                    await asyncio.sleep(_POLL_S)

    def signal(self, service: str, number: signal.Signals) -> None:
        """Send a signal to every replica of a service."""
        for address in self.plan.addresses(service):
            self.replicas[address].send(number)

    @property
    def postgres(self) -> PostgresServer:
        return self._postgres

    @property
    def redis(self) -> ValkeyServer:
        return self._valkey

    @property
    def gateway(self) -> GatewaySimulator:
        return self._gateway

    @property
    def gateway_child(self) -> Child:
        assert self._gateway.child is not None
        return self._gateway.child

    def kill_redis(self) -> None:
        """End it as kill -9 does; ``redis.start`` starts it empty, at the same address."""
        assert self._valkey.child is not None
        self._valkey.child.stop(signal.SIGKILL)
        self._valkey.child = None

    # -- books -----------------------------------------------------------------------------------

    @property
    def sources(self) -> Sources:
        urls = {service: urls.audit for service, urls in self.backends.databases.items()}
        return Sources(urls, self.plan.data_dir / GATEWAY_RECORD)

    async def differences(self) -> list[str]:
        """What the audit finds; nothing if every invariant holds, and no saga has left effects."""
        report = await audit(self.sources, Limits())
        holds = report.holds and not report.noted(Note.FOREIGN)
        return [] if holds else as_text(report, details=True).splitlines()


def _serves(address: str) -> bool:
    try:
        return status_of(address, limit_s=1.0) == "SERVING"
    except grpc.RpcError:
        return False


@contextmanager
def running(
    data_dir: Path,
    base_port: int,
    settings: Mapping[str, str],
    make: Callable[[Path, int], S],
) -> Iterator[S]:
    """A stack with these settings, stopped at the end.

    Enter it in the main thread, or in one that lives as long as the stack (see Child).
    """
    before = dict(os.environ)
    try:
        use_own_servers(**settings, **{failpoints.VARIABLE: str(data_dir / "failpoints")})
        stack = make(data_dir, base_port)
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()
    finally:
        os.environ.clear()
        os.environ.update(before)


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run ``work`` during the block, then cancel it; what it raises is raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
