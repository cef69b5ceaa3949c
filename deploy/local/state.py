"""The addresses of a stack, recorded in its data directory for the audit and `make watch`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.local.data_dir import DirectoryInUse, locked
from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT, Plan, plain_environment
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.secret_files import read_json, write_json

AUDIT_LIMIT_S: Final = 120.0
STATE_FILE: Final = "state.json"


def write_state(
    plan: Plan,
    databases: Mapping[str, ServiceUrls],
    external: Mapping[str, ServiceUrls],
    pages: Mapping[str, Sequence[str]],
) -> None:
    """Record the audit role's addresses, which databases are not on the runner's server, and where
    the metrics pages are, by service.
    """
    write_json(
        plan.data_dir / STATE_FILE,
        {
            "audit_urls": {service: urls.audit for service, urls in databases.items()},
            "outside": sorted(external),
            "metrics": pages,
        },
    )


def metrics_pages(data_dir: Path) -> dict[str, list[str]]:
    """The addresses of the metrics pages of each service's replicas, and of the audit if it runs.

    Raises RunnerError.
    """
    state = read_json(data_dir / STATE_FILE)
    if state is None or "metrics" not in state:
        raise RunnerError(f"no stack has been started in {data_dir}: run `make up` first")
    return {str(service): [*map(str, pages)] for service, pages in state["metrics"].items()}


def run_audit(data_dir: Path) -> tuple[int, list[str]]:
    """Audit a stack of which only the project's own load was a client: the exit code, and the lines
    of the report."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.audit", "--no-foreign", "--data-dir", data_dir],
        cwd=PROJECT,
        env=plain_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=AUDIT_LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout.rstrip().splitlines()


@contextlib.contextmanager
def audit_urls(data_dir: Path) -> Iterator[dict[str, str]]:
    """The audit role's address of each service's database.

    If the stack is stopped, the directory is locked and its PostgreSQL runs, on a free port, until
    the block ends. Enter it in the main thread (see Child). Raises RunnerError.
    """
    state = read_json(data_dir / STATE_FILE)
    if state is None:
        raise RunnerError(f"no stack has been started in {data_dir}: run `make up` first")
    urls = {str(service): str(url) for service, url in state["audit_urls"].items()}
    own = [service for service in urls if service not in state["outside"]]
    missing = [service for service, url in urls.items() if not url]
    if missing:
        raise RunnerError(f"TALLY_{missing[0].upper()}_AUDIT_DATABASE_URL is not known")
    with contextlib.ExitStack() as exits:
        if own:
            with contextlib.suppress(DirectoryInUse):
                # The lock is free only if the stack has stopped, in whatever way it ended.
                exits.enter_context(locked(data_dir))
                server = exits.enter_context(PostgresServer(data_dir / "postgres"))
                urls |= {service: server.urls(service).audit for service in own}
        yield urls
