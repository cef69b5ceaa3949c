"""`python -m deploy.local.demo`: a flash sale on a fresh stack, and the proof of its books."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

# Before gRPC is loaded: its C core writes to stderr about connections to a replica that is dead.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import cyclopts

from deploy.local.demo.run import run
from deploy.local.demo.screen import Screen
from deploy.local.demo.script import USERS_MAX, USERS_MIN
from deploy.local.demo.stopping import Stopped, ignore_signals, stop_on_signals
from deploy.local.errors import RunnerError
from deploy.local.plan import DEFAULT_DATA_DIR, Plan, latency_range

REPLICAS_MIN: Final = 2
SEEDS: Final = 10_000
EXIT_STOPPED: Final = 130

app = cyclopts.App(
    name="python -m deploy.local.demo",
    help="Run a flash sale on a fresh stack, and prove that the books balance.",
    help_formatter="plain",
    help_format="plaintext",
    version_flags=(),
    print_error=False,
    exit_on_error=False,
)


@app.default
def demo(
    *,
    users: int = 120,
    replicas: int = 2,
    seed: int | None = None,
    data_dir: Path = DEFAULT_DATA_DIR,
    base_port: int = 50050,
    gateway_latency_ms: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)] = "100-500",
) -> int:
    """Start everything, sell out, kill a replica meanwhile, check, audit, stop everything.

    Parameters
    ----------
    users
        How many customers take part.
    replicas
        Replicas of each service, one of which is killed in the middle.
    seed
        Decides who does what and which replica is killed; by default another one each time.
    data_dir
        Data of an earlier demo is replaced; data of your own is moved aside.
    base_port
        The first port less one, as for `python -m deploy.local up`.
    gateway_latency_ms
        How long the gateway simulator takes to answer, as LOW-HIGH.
    """
    if not USERS_MIN <= users <= USERS_MAX:
        raise RunnerError(f"users must be from {USERS_MIN} to {USERS_MAX}, not {users}")
    if replicas < REPLICAS_MIN:
        raise RunnerError(f"replicas must be at least {REPLICAS_MIN}: one is killed")
    plan = Plan(
        data_dir=data_dir.resolve(),
        replicas=replicas,
        base_port=base_port,
        gateway_latency_ms=latency_range(gateway_latency_ms),
    )
    chosen = secrets.randbelow(SEEDS) if seed is None else seed
    stop_on_signals()
    try:
        return run(plan, users=users, seed=chosen, screen=Screen())
    except Stopped:
        print("stopped", flush=True)
        return EXIT_STOPPED


def main() -> None:
    try:
        sys.exit(app(sys.argv[1:]))
    except (RunnerError, cyclopts.CycloptsError, OSError, subprocess.SubprocessError) as error:
        ignore_signals()
        sys.exit(f"error: {str(error).strip()}")


if __name__ == "__main__":
    main()
