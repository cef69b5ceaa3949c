"""The whole stack on one machine: started in order, watched, stopped in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

from deploy.local.data_dir import Registry, locked
from deploy.local.errors import RunnerError
from deploy.local.plan import (
    PROJECT,
    Backends,
    Outside,
    Plan,
    migration_environment,
    plain_environment,
    replica_environment,
)
from deploy.local.postgres import PostgresServer
from deploy.local.processes import HOST, Child, require_free_port, stop_all
from deploy.local.readiness import failed_start, wait_for_port, wait_until_serving
from deploy.local.secret_files import new_password, write_json
from deploy.local.state import write_state
from deploy.local.valkey import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from deploy.local.postgres_roles import ServiceUrls

MIGRATION_LIMIT_S = 120.0
READY_LIMIT_S = 60.0
# Longer than a service's own grace for its running calls (10 s).
SERVICE_STOP_LIMIT_S = 15.0
GATEWAY_STOP_LIMIT_S = 5.0


class Stack:
    """A context manager: entering starts everything or raises RunnerError and leaves nothing.

    Enter it in the main thread (see Child). report is told each thing as it becomes ready.
    """

    def __init__(self, plan: Plan, report: Callable[[str], None]) -> None:
        self.plan = plan
        self.replicas: dict[str, Child] = {}
        self._report = report
        self._outside = Outside.of(os.environ, plan.services)
        self._exits = contextlib.ExitStack()
        self._logs = plan.data_dir / "logs"
        self._registry = Registry(plan.data_dir)
        self._postgres = PostgresServer(
            plan.data_dir / "postgres", plan.postgres_port, self._logs / "postgres.log"
        )
        self._valkey = ValkeyServer(
            plan.data_dir / "valkey", plan.valkey_port, self._logs / "valkey.log"
        )
        self._gateway: Child | None = None
        self._reported_dead: set[int] = set()
        self.backends = Backends({}, "", "", "")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when every replica is ready. Whatever happens, stop() must follow."""
        self._exits.enter_context(locked(self.plan.data_dir))
        self._prepare_ready_file()
        cleared = self._registry.clear_survivors()
        if cleared:
            self._report(f"cleared {cleared} processes that an earlier run had left")
        if (self.plan.data_dir / "postgres").is_dir():
            self._postgres.files.clear_survivor()
        self._exits.callback(self._registry.forget)
        self.require_free_ports()
        databases = self._start_postgres()
        redis_url = self._start_valkey()
        gateway_url, secret_key = self._start_gateway()
        self.backends = Backends(databases, redis_url, gateway_url, secret_key)
        self._migrate()
        self._start_replicas()
        if self.plan.ready_file is not None:
            self._exits.callback(self.plan.ready_file.unlink, missing_ok=True)
            write_json(self.plan.ready_file, self.description())

    def stop(self) -> None:
        """Stop everything, the callers before the called. Harmless when nothing runs."""
        self._exits.close()

    def description(self) -> dict[str, Any]:
        """Return where everything is: the content of the ready file."""
        return {
            "services": {name: self.plan.addresses(name) for name in self.plan.services},
            "gateway": self.backends.gateway_url,
            "postgres": self._postgres_url(),
            "redis": self.backends.redis_url,
            "pids": {
                name: [self.replicas[address].pid for address in self.plan.addresses(name)]
                for name in self.plan.services
            },
        }

    def newly_dead(self) -> list[str]:
        """Return a line for each process that has ended since the last call."""
        lines = []
        for child in self.children:
            code = child.exit_code()
            if code is not None and child.pid not in self._reported_dead:
                self._reported_dead.add(child.pid)
                how = (
                    f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
                )
                lines.append(
                    f"{child.name} (pid {child.pid}) {how} and is not restarted; "
                    f"the rest goes on. Log: {child.log_file}"
                )
        return lines

    @property
    def children(self) -> list[Child]:
        """Return every process started and not stopped, by name: servers first, then replicas."""
        servers = [self._postgres.child, self._valkey.child, self._gateway]
        return [child for child in [*servers, *self.replicas.values()] if child is not None]

    def _postgres_url(self) -> str:
        if self._postgres.child is not None:
            return self._postgres.admin_url
        return next((urls.runtime for urls in self.backends.databases.values()), "")

    def _prepare_ready_file(self) -> None:
        file = self.plan.ready_file
        if file is None:
            return
        if file.is_dir() or not file.parent.is_dir():
            raise RunnerError(f"ready file {file}: not a file in a directory that exists")
        # One that a killed run left would announce servers that are not there.
        file.unlink(missing_ok=True)

    def require_free_ports(self) -> None:
        """Refuse with one clear line when something else holds a port of this stack."""
        plan, outside = self.plan, self._outside
        for replica in range(plan.replicas):
            for service in plan.services:
                require_free_port(plan.port(service, replica), f"{service}-{replica}")
        if len(outside.databases) < len(plan.services) or not plan.services:
            require_free_port(plan.postgres_port, "PostgreSQL")
        if plan.redis and outside.redis_url is None:
            require_free_port(plan.valkey_port, "Valkey")
        if self._needs_gateway():
            require_free_port(plan.gateway_port, "the gateway simulator")

    def _start_postgres(self) -> dict[str, ServiceUrls]:
        databases = dict(self._outside.databases)
        own = [service for service in self.plan.services if service not in databases]
        if own or not self.plan.services:
            self._exits.callback(self._postgres.stop)
            self._postgres.start()
            self._report(f"PostgreSQL  {HOST}:{self._postgres.port}")
        for service in own:
            databases[service] = self._postgres.provision(service)
        write_state(self.plan.data_dir, databases, self._outside.databases)
        return databases

    def _start_valkey(self) -> str:
        if not self.plan.redis:
            return ""
        if self._outside.redis_url is not None:
            return self._outside.redis_url
        self._exits.callback(self._valkey.stop)
        self._valkey.start()
        assert self._valkey.child is not None
        self._registry.add(self._valkey.child)
        self._report(f"Valkey      {HOST}:{self._valkey.port}")
        return self._valkey.url

    def _needs_gateway(self) -> bool:
        return "payment" in self.plan.services and self._outside.gateway_url is None

    def _start_gateway(self) -> tuple[str, str]:
        if not self._needs_gateway():
            return self._outside.gateway_url or "", self._outside.gateway_secret_key
        key_file = self.plan.data_dir / "gateway.key"
        secret_key = _kept_secret(key_file)
        port = self.plan.gateway_port
        self._gateway = self._spawn(
            "gateway",
            [
                *("deploy.local.gateway", "--host", HOST, "--port", str(port)),
                *("--data-file", str(self.plan.data_dir / "gateway.sqlite3")),
                *("--latency-ms", "{}-{}".format(*self.plan.gateway_latency_ms)),
                *("--secret-key-file", str(key_file)),
            ],
            plain_environment(),
        )
        self._exits.callback(self._gateway.stop, grace_s=GATEWAY_STOP_LIMIT_S)
        wait_for_port(self._gateway, port, limit_s=READY_LIMIT_S)
        self._report(f"gateway     http://{HOST}:{port}")
        return f"http://{HOST}:{port}", secret_key

    def _migrate(self) -> None:
        """Bring each database to its newest schema, all at the same time."""
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
                raise failed_start(child, how)
        if children:
            self._report(f"migrated    {', '.join(self.plan.services)}")

    def _start_replicas(self) -> None:
        # What is started last is stopped first: the order service may still call the others.
        for service in sorted(self.plan.services, key=lambda name: name == "order"):
            replicas = []
            for replica, address in enumerate(self.plan.addresses(service)):
                child = self._spawn(
                    f"{service}-{replica}",
                    [f"{service}_service"],
                    replica_environment(self.plan, service, replica, self.backends),
                )
                self.replicas[address] = child
                replicas.append(child)
            self._exits.callback(stop_all, replicas, grace_s=SERVICE_STOP_LIMIT_S)
        wait_until_serving(
            self.replicas,
            limit_s=READY_LIMIT_S,
            on_ready=lambda address, child: self._report(f"{child.name:<11} {address}"),
        )

    def _spawn(self, name: str, module: Sequence[str], env: dict[str, str]) -> Child:
        child = Child(
            name,
            [sys.executable, "-m", *module],
            log_file=self._logs / f"{name}.log",
            env=env,
            cwd=PROJECT,
        )
        self._registry.add(child)
        return child


def _kept_secret(path: Path) -> str:
    """Return the secret in the file; the first time, make one."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    secret = new_password()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{secret}\n")
    return secret
