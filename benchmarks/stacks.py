"""The stacks that are measured: started in a directory of their own, audited at the end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import grpc
from yarl import URL

from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT, Plan, plain_environment, use_own_servers
from deploy.local.processes import HOST, Child, free_port, require_free_port
from deploy.local.stack import Stack

SETTINGS: Final = {
    # Orders that are created and not paid would expire in the middle of a later measurement.
    "TALLY_ORDER_ORDER_EXPIRY_S": "86400",
    # By default a replica refuses payments above 3/4 of 256: 200 callers are more.
    "TALLY_ORDER_SAGA_RUNNING_MAX": "1024",
    "TALLY_LOG_LEVEL": "warning",
}
"""What differs from the defaults."""
AUDIT_LIMIT_S: Final = 1800.0
READY_LIMIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Audit:
    """The verdict on the books of a stack."""

    holds: bool
    lines: list[str]


@contextmanager
def running_stack(data_dir: Path, *, replicas: int = 1) -> Iterator[Stack]:
    """A fresh stack, with a gateway that answers at once. Enter it in the main thread."""
    shutil.rmtree(data_dir, ignore_errors=True)
    use_own_servers(**SETTINGS)
    plan = Plan(
        data_dir=data_dir,
        replicas=replicas,
        base_port=_base_port(replicas),
        gateway_latency_ms=(0, 0),
    )
    with Stack(plan, lambda _line: None) as stack:
        yield stack


def addresses(stack: Stack) -> dict[str, list[str]]:
    return {service: stack.plan.addresses(service) for service in stack.plan.services}


def admin_url(stack: Stack, database: str = "postgres") -> str:
    """The superuser's address of a database of the stack."""
    return str(URL(stack.description()["postgres"]).with_path(f"/{database}"))


async def create_database(stack: Stack, name: str) -> str:
    """Create a database for a comparison; its address."""
    connection = await asyncpg.connect(admin_url(stack))
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return admin_url(stack, name)


def server(
    name: str, module: str, *arguments: object, logs: Path, **environment: str
) -> AbstractAsyncContextManager[str]:
    """A server of ``benchmarks.servers``, on a free port; yields its address."""
    port = free_port()
    command = [module, str(port), *map(str, arguments)]
    return _running(name, command, port, logs, plain_environment() | environment)


def replica(stack: Stack, service: str, **settings: str) -> AbstractAsyncContextManager[str]:
    """One more replica of a service of the stack, with these settings; yields its address."""
    port = free_port()
    name = f"{service}-more"
    own = {"BIND": f"{HOST}:{port}", "METRICS_PORT": "0", "REPLICA": name, **settings}
    environment = stack.environment(service, 0) | {
        f"TALLY_{service.upper()}_{setting}": value for setting, value in own.items()
    }
    logs = stack.plan.data_dir / "logs"
    return _running(name, [f"{service}_service"], port, logs, environment)


@asynccontextmanager
async def _running(
    name: str, command: Sequence[str], port: int, logs: Path, environment: Mapping[str, str]
) -> AsyncIterator[str]:
    """A process that serves on this port; yields its address when it is connected."""
    child = Child(
        name,
        [sys.executable, "-m", *command],
        log_file=logs / f"{name}.log",
        env=dict(environment),
        cwd=PROJECT,
    )
    try:
        address = f"{HOST}:{port}"
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                await asyncio.wait_for(channel.channel_ready(), READY_LIMIT_S)
            except TimeoutError:
                raise child.failure("is not ready") from None
        yield address
    finally:
        child.stop()


async def audit(stack: Stack) -> Audit:
    """Audit the stack, of which only the load was a client."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.audit", "--no-foreign"),
        *("--data-dir", stack.plan.data_dir),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=plain_environment(),
        cwd=PROJECT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), AUDIT_LIMIT_S)
    return Audit(process.returncode == 0, output.decode().rstrip().splitlines())


def _base_port(replicas: int) -> int:
    """A base from which all ports of a stack are free at this moment."""
    for _ in range(50):
        base = 10_000 + free_port() % 20_000
        ports = [
            base + 100 * replica + offset for replica in range(replicas) for offset in range(15)
        ]
        with contextlib.suppress(RunnerError):
            for port in ports:
                require_free_port(port, "the benchmark")
            return base
    raise RunnerError("found no range of free ports")
