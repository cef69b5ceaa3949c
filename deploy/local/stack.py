"""The whole stack on one machine: started in order, watched, stopped in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import grpc

from common.rpc.probe import status_of
from deploy.local.data_dir import locked
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.identities import Identities
from deploy.local.monitors import AuditServer, installed_monitors, planned_audit
from deploy.local.plan import (
    GATEWAY_RECORD,
    PROJECT,
    Plan,
    audit_environment,
    migration_environment,
    named_backends,
    replica_environment,
)
from deploy.local.postgres import PostgresServer
from deploy.local.processes import (
    HOST,
    POLL_S,
    Child,
    LocalServer,
    Startable,
    hold_port,
    stop_all,
)
from deploy.local.secret_files import kept_password, write_json
from deploy.local.state import write_state
from deploy.local.valkey import ValkeyServer

MIGRATION_LIMIT_S: Final = 120.0
READY_LIMIT_S: Final = 60.0
CALL_LIMIT_S: Final = 1.0
SERVICE_STOP_LIMIT_S: Final = 15.0
"""Longer than a service's own grace period for its running calls (10 s)."""


class Stack(Startable):
    """Starting it starts everything; ``report`` gets a line for each server that is ready."""

    def __init__(self, plan: Plan, report: Callable[[str], None]) -> None:
        self.plan = plan
        self.replicas: dict[str, Child] = {}
        """By address."""
        self.identities: Identities | None = None
        """The stack's own tokens; after ``start``, with ``plan.auth``."""
        self._report = report
        self._exits = contextlib.ExitStack()
        self._logs = plan.data_dir / "logs"
        self._postgres = PostgresServer(
            plan.data_dir / "postgres", plan.port("postgres"), self._logs / "postgres.log"
        )
        self._valkey = ValkeyServer(
            plan.data_dir / "valkey", plan.port("valkey"), self._logs / "valkey.log"
        )
        self._gateway = GatewaySimulator(
            plan.data_dir / GATEWAY_RECORD,
            plan.port("gateway"),
            self._logs / "gateway.log",
            latency_ms=plan.gateway_latency_ms,
        )
        self._reported_dead: set[int] = set()
        self.backends = named = named_backends(os.environ, plan)
        """Those that the environment names; after ``start`` all."""
        needed = {
            self._postgres: len(named.databases) < len(plan.services),
            self._valkey: plan.redis and not named.redis_url,
            self._gateway: "payment" in plan.services and not named.gateway_url,
        }
        self._servers = [server for server, is_needed in needed.items() if is_needed]
        self._audit: AuditServer | None = None
        if plan.monitoring:
            self._audit = planned_audit(plan, named, report)
        self.pages = plan.metrics_pages(audit=self._audit is not None)
        """The addresses of the metrics pages, by service."""
        self._monitors = installed_monitors(plan, self.pages, report) if plan.monitoring else []

    def start(self) -> None:
        """Return when every replica is ready."""
        self._exits.enter_context(locked(self.plan.data_dir))
        if self.plan.ready_file is not None:
            # The file of a killed run would name servers that no longer exist.
            self.plan.ready_file.unlink(missing_ok=True)
        self._postgres.files.stop_survivor()
        self._hold_ports(self._exits)
        if self.plan.auth:
            self.identities = Identities(self.plan.identity_dir)
        self._start_servers()
        self._migrate()
        self._start_replicas()
        if self._audit is not None:
            self._audit.environment = audit_environment(self.plan, self.backends)
            self._exits.enter_context(self._audit)
            self._report(f"{self._audit.name:<12} {'':<15}   metrics {self._audit.url}/metrics")
        for monitor in self._monitors:
            self._exits.enter_context(monitor)
            self._report(f"{monitor.name:<12} http://{HOST}:{monitor.port}")
        if self.plan.ready_file is not None:
            self._exits.callback(self.plan.ready_file.unlink, missing_ok=True)
            write_json(self.plan.ready_file, self.description())

    def stop(self) -> None:
        """Stop everything, each server after those that call it."""
        self._exits.close()

    def description(self) -> dict[str, Any]:
        """The content of the ready file: where everything is."""
        own_postgres = self._postgres in self._servers
        databases = self.backends.databases.values()
        return {
            "services": {name: self.plan.addresses(name) for name in self.plan.services},
            "metrics": self.pages,
            "gateway": self.backends.gateway_url,
            "postgres": self._postgres.admin_url if own_postgres else next(iter(databases)).runtime,
            "redis": self.backends.redis_url,
            "pids": {
                name: [self.replicas[address].pid for address in self.plan.addresses(name)]
                for name in self.plan.services
            },
        }

    def environment(self, service: str, replica: int) -> dict[str, str]:
        """The environment in which a replica runs."""
        own = {} if self.identities is None else self.identities.environment()
        return replica_environment(self.plan, service, replica, self.backends) | own

    def newly_dead(self) -> list[Child]:
        """The processes that have ended since the last call: servers first, then replicas."""
        servers = (*self._servers, *self._beside)
        children = [*(server.child for server in servers), *self.replicas.values()]
        dead = [
            child
            for child in children
            if child and child.exit_code() is not None and child.pid not in self._reported_dead
        ]
        self._reported_dead |= {child.pid for child in dead}
        return dead

    def require_free_ports(self) -> None:
        """Raise RunnerError if another program holds a port of this stack."""
        with contextlib.ExitStack() as held:
            self._hold_ports(held)

    def _hold_ports(self, held: contextlib.ExitStack) -> None:
        """Hold the stack's ports until ``held`` ends. Raises RunnerError if one is taken."""
        for replica in range(self.plan.replicas):
            for service in self.plan.services:
                port = self.plan.port(service, replica)
                held.enter_context(hold_port(port, f"{service}-{replica}"))
                page = hold_port(
                    self.plan.metrics_page_port(service, replica),
                    f"the metrics page of {service}-{replica}",
                    option="--metrics-port 61050",
                )
                held.enter_context(page)
        for server in (*self._servers, *self._beside):
            held.enter_context(hold_port(server.port, server.name, option=server.port_option))

    @property
    def _beside(self) -> list[LocalServer]:
        """What no service needs: the audit, and the monitors."""
        return [*([self._audit] if self._audit else []), *self._monitors]

    def _start_servers(self) -> None:
        """Start those that the environment does not name, and describe all in ``backends``."""
        plan, named = self.plan, self.backends
        self._gateway.secret_key = kept_password(plan.data_dir / "gateway.key")
        for server in self._servers:
            self._exits.enter_context(server)
            self._report(f"{server.name:<12} {HOST}:{server.port}")
        own = {
            service: self._postgres.provision(service)
            for service in plan.services
            if service not in named.databases
        }
        self.backends = replace(named, databases={**named.databases, **own})
        if self._valkey in self._servers:
            self.backends = replace(self.backends, redis_url=self._valkey.url)
        if self._gateway in self._servers:
            self.backends = replace(
                self.backends,
                gateway_url=self._gateway.url,
                gateway_secret_key=self._gateway.secret_key,
            )
        write_state(plan, self.backends.databases, named.databases, self.pages)

    def _migrate(self) -> None:
        """Migrate all databases at the same time."""
        children = []
        for service in self.plan.services:
            child = self._spawn(
                f"{service}-migrate",
                [f"{service}_service", "migrate"],
                migration_environment(service, self.backends),
            )
            self._exits.callback(child.stop)
            children.append(child)
        for child in children:
            code = child.wait(MIGRATION_LIMIT_S)
            if code != 0:
                how = "did not end in time" if code is None else f"failed with {code}"
                raise child.failure(how)
        self._report(f"{'migrated':<12} {', '.join(self.plan.services)}")

    def _start_replicas(self) -> None:
        # Replicas stop in reverse order: the order service may still call the others.
        for service in sorted(self.plan.services, key=lambda name: name == "order"):
            replicas = []
            for replica, address in enumerate(self.plan.addresses(service)):
                child = self._spawn(
                    f"{service}-{replica}",
                    [f"{service}_service"],
                    self.environment(service, replica),
                )
                self.replicas[address] = child
                replicas.append(child)
            self._exits.callback(stop_all, replicas, grace_s=SERVICE_STOP_LIMIT_S)
        self._await_replicas()

    def _await_replicas(self) -> None:
        pages = {
            f"{service}-{replica}": f"metrics http://{address}/metrics"
            for service in self.plan.services
            for replica, address in enumerate(self.plan.metrics_addresses(service))
        }
        deadline = time.monotonic() + READY_LIMIT_S
        waiting = dict(self.replicas)
        while waiting:
            for address, child in list(waiting.items()):
                if child.exit_code() is not None:
                    raise child.failure(f"ended at start with {child.exit_code()}")
                if time.monotonic() > deadline:
                    raise child.failure(f"is not ready after {READY_LIMIT_S:.0f} s")
                with contextlib.suppress(grpc.RpcError):
                    if status_of(address, limit_s=CALL_LIMIT_S) == "SERVING":
                        del waiting[address]
                        self._report(f"{child.name:<12} {address}   {pages[child.name]}")
            time.sleep(POLL_S)

    def _spawn(self, name: str, module: list[str], env: dict[str, str]) -> Child:
        return Child(
            name,
            [sys.executable, "-m", *module],
            log_file=self._logs / f"{name}.log",
            env=env,
            cwd=PROJECT,
        )


def describe_death(child: Child) -> str:
    """One line about a process that ended by itself or was killed."""
    code = child.exit_code() or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
    return (
        f"{child.name} (pid {child.pid}) {how} and is not restarted; "
        f"the others continue. Log: {child.log_file}"
    )
