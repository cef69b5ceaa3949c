"""`python -m deploy.local.demo`: a flash sale on a fresh stack, then the audit of its books."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

# Before gRPC is imported: its C core writes to stderr about connections to a killed replica.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from deploy.local.command_line import (
    BasePort,
    Flag,
    GatewayLatency,
    MetricsPort,
    make_app,
    run_app,
)
from deploy.local.demo.output import Output
from deploy.local.demo.run import run
from deploy.local.demo.scenario import USERS_MAX, USERS_MIN
from deploy.local.errors import RunnerError
from deploy.local.plan import DEFAULT_DATA_DIR, Plan, latency_range

REPLICAS_MIN: Final = 2
SEEDS: Final = 10_000

app = make_app(
    "deploy.local.demo", "Run a flash sale on a fresh stack, and prove that the books balance."
)


@app.default
def demo(
    *,
    users: int = 120,
    replicas: int = 2,
    seed: int | None = None,
    data_dir: Path = DEFAULT_DATA_DIR,
    base_port: BasePort = 50050,
    metrics_port: MetricsPort = None,
    gateway_latency_ms: GatewayLatency = "100-500",
    auth: Flag = False,
) -> int:
    """Start everything, sell out, kill a replica meanwhile, check, audit, stop everything.

    Parameters
    ----------
    users
        The number of customers.
    replicas
        Replicas of each service, one of which is killed during the sale.
    seed
        Decides who does what and which replica is killed; random by default.
    data_dir
        Data of an earlier demo is replaced; other data is moved aside.
    auth
        Ask for tokens: customers, an operator, the till and the order service have their own.
    """
    if not USERS_MIN <= users <= USERS_MAX:
        raise RunnerError(f"users must be from {USERS_MIN} to {USERS_MAX}, not {users}")
    if replicas < REPLICAS_MIN:
        raise RunnerError(f"replicas must be at least {REPLICAS_MIN}: one is killed")
    plan = Plan(
        data_dir=data_dir.resolve(),
        replicas=replicas,
        base_port=base_port,
        metrics_port=metrics_port,
        gateway_latency_ms=latency_range(gateway_latency_ms),
        auth=auth,
    )
    chosen = secrets.randbelow(SEEDS) if seed is None else seed
    return run(plan, users=users, seed=chosen, output=Output())


if __name__ == "__main__":
    run_app(app)
