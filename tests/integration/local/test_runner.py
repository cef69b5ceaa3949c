"""The runner as a process of its own, with stand-ins for the services."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local import plan
from deploy.local.postgres import PostgresServer
from deploy.local.processes import Child, free_port, stop_all
from deploy.local.state import audit_urls, metrics_pages
from deploy.local.valkey import ValkeyServer

PATIENCE_S = 60.0
STACK_PORTS = 400
"""The ports of four replicas: each replica is 100 ports higher."""


class Project:
    """A copy of the runner in a directory that only its owner may enter, with stand-ins."""

    def __init__(self, home: Path, services: tuple[str, ...]) -> None:
        self.home = home
        home.chmod(0o700)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(plan.PROJECT / "deploy", home / "deploy", ignore=ignored)
        for service in services:
            package = home / f"{service}_service"
            package.mkdir()
            (package / "__init__.py").touch()
            shutil.copy(Path(__file__).with_name("stand_in.py"), package / "__main__.py")
        self.data_dir = home / "data"
        self.ready_file = home / "ready.json"
        self.base_port = free_base_port()
        self.running: list[subprocess.Popen[str]] = []

    def up(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        runner = subprocess.Popen(
            [
                *(sys.executable, "-m", "deploy.local", "up", "--data-dir", self.data_dir),
                *("--base-port", str(self.base_port), "--ready-file", self.ready_file),
                *("--gateway-latency-ms", "5-20", *arguments),
            ],
            cwd=self.home,
            env=environment_without_tally() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(runner)
        return runner

    def up_and_ready(
        self, *arguments: str, **environment: str
    ) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        runner = self.up(*arguments, **environment)
        wait_for(lambda: self.ready_file.exists() or runner.poll() is not None)
        assert runner.poll() is None, runner.communicate()
        return runner, json.loads(self.ready_file.read_text())

    def assert_nothing_left(self, descendants: set[int]) -> None:
        wait_for(lambda: not any(alive(pid) for pid in descendants))
        assert not self.ready_file.exists()
        assert not (self.data_dir / "postgres" / "pgdata" / "postmaster.pid").exists()
        for offset in range(1, 8):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", self.base_port + offset))


@pytest.fixture
def make_project(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    made: list[Project] = []

    def make(*services: str) -> Project:
        made.append(Project(tmp_path, services))
        return made[-1]

    yield make
    for project in made:
        for runner in project.running:
            runner.terminate()
            runner.communicate(timeout=PATIENCE_S)


async def test_stack_from_start_to_stop(make_project: Callable[..., Project]) -> None:
    project = make_project("balance", "payment")
    runner, ready = project.up_and_ready("--replicas", "2")
    base = project.base_port

    assert list(ready) == ["services", "metrics", "gateway", "postgres", "redis", "pids"]
    assert ready["services"] == {
        "balance": [f"127.0.0.1:{base + 1}", f"127.0.0.1:{base + 101}"],
        "payment": [f"127.0.0.1:{base + 4}", f"127.0.0.1:{base + 104}"],
    }
    assert (
        ready["metrics"]
        == metrics_pages(project.data_dir)
        == {
            "balance": [f"127.0.0.1:{base + 11}", f"127.0.0.1:{base + 111}"],
            "payment": [f"127.0.0.1:{base + 14}", f"127.0.0.1:{base + 114}"],
        }
    )
    assert ready["gateway"] == f"http://127.0.0.1:{base + 5}"
    assert re.fullmatch(rf"postgresql://\S+@127.0.0.1:{base + 6}/postgres", ready["postgres"])
    assert re.fullmatch(rf"redis://\S+@127.0.0.1:{base + 7}/0", ready["redis"])
    descendants = descendants_of(runner.pid)
    assert {pid for pids in ready["pids"].values() for pid in pids} < descendants
    variables = project.data_dir.joinpath("logs/balance-0.log").read_text()
    assert "TALLY_BALANCE_DATABASE_URL" in variables
    assert "OWNER" not in variables
    assert "PAYMENT" not in variables

    second = project.up()
    _, complaint = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 1
    assert re.fullmatch(
        rf"error: data directory .* in use by another runner \(pid {runner.pid}\)\n", complaint
    )

    postgres = PostgresServer(project.data_dir / "postgres", base + 6)
    postgres.files.load_passwords()
    connection = await asyncpg.connect(postgres.urls("balance").owner)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
    await connection.execute("GRANT SELECT ON kept TO tally_balance_audit")
    await connection.close()
    with audit_urls(project.data_dir) as urls:
        assert await count_kept(urls["balance"]) == 1

    os.kill(ready["pids"]["balance"][1], signal.SIGKILL)
    assert runner.stdout is not None
    line = next(line for line in runner.stdout if "SIGKILL" in line)
    assert f"balance-1 (pid {ready['pids']['balance'][1]})" in line
    assert "the others continue" in line
    assert all(alive(pid) for pid in (ready["pids"]["balance"][0], *ready["pids"]["payment"]))

    runner.send_signal(signal.SIGINT)
    runner.send_signal(signal.SIGTERM)
    _, complaint = runner.communicate(timeout=PATIENCE_S)
    assert (runner.returncode, complaint) == (0, "")
    project.assert_nothing_left(descendants)

    with audit_urls(project.data_dir) as urls:
        assert await count_kept(urls["balance"]) == 1
    project.assert_nothing_left(set())


def test_killed_runner_leaves_nothing_and_can_be_started_again(
    make_project: Callable[..., Project],
) -> None:
    project = make_project("balance")
    runner, ready = project.up_and_ready("--replicas", "1", "--without-redis")
    assert ready["redis"] == ""
    descendants = descendants_of(runner.pid)
    runner.kill()
    runner.communicate(timeout=PATIENCE_S)
    wait_for(lambda: not any(alive(pid) for pid in descendants))

    project.ready_file.unlink()
    runner, again = project.up_and_ready("--replicas", "1", "--without-redis")
    assert again["postgres"] == ready["postgres"]
    assert again["pids"] != ready["pids"]
    descendants = descendants_of(runner.pid)
    runner.send_signal(signal.SIGTERM)
    runner.communicate(timeout=PATIENCE_S)
    assert runner.returncode == 0
    project.assert_nothing_left(descendants)


def test_replica_that_fails_at_start_is_reported_and_nothing_is_left(
    make_project: Callable[..., Project],
) -> None:
    project = make_project("balance", "coupon")
    (project.home / "coupon_service" / "fail").touch()
    runner = project.up()
    _, complaint = runner.communicate(timeout=PATIENCE_S)
    assert runner.returncode == 1
    assert re.search(r"error: coupon-\d ended at start with 1; .*/logs/coupon-\d.log", complaint)
    assert "no cheese in stock" in complaint
    project.assert_nothing_left(set())


def test_runner_can_be_stopped_before_it_is_ready(make_project: Callable[..., Project]) -> None:
    project = make_project("balance")
    (project.home / "balance_service" / "linger").touch()
    runner = project.up()
    log = project.data_dir / "logs" / "balance-0.log"
    wait_for(lambda: log.exists() and "TALLY_" in log.read_text())
    descendants = descendants_of(runner.pid)
    runner.send_signal(signal.SIGTERM)
    _, complaint = runner.communicate(timeout=PATIENCE_S)
    assert (runner.returncode, complaint) == (0, "")
    project.assert_nothing_left(descendants)


def test_servers_named_in_the_environment_are_used(
    make_project: Callable[..., Project],
    postgres_server: PostgresServer,
    valkey_server: ValkeyServer,
) -> None:
    project = make_project("balance", "payment")
    databases: dict[str, str] = {}
    for service in ("balance", "payment"):
        urls = postgres_server.provision(service)
        prefix = f"TALLY_{service.upper()}_"
        databases |= {
            f"{prefix}DATABASE_URL": urls.runtime,
            f"{prefix}OWNER_DATABASE_URL": urls.owner,
        }
    runner, ready = project.up_and_ready(
        TALLY_REDIS_URL=valkey_server.url,
        TALLY_PAYMENT_GATEWAY_URL="http://gateway.invalid",
        **databases,
    )
    assert ready["redis"] == valkey_server.url
    assert ready["gateway"] == "http://gateway.invalid"
    assert ready["postgres"] == databases["TALLY_BALANCE_DATABASE_URL"]
    assert descendants_of(runner.pid) == {pid for pids in ready["pids"].values() for pid in pids}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--replicas", "0"),
        ("--replicas", "many"),
        ("--base-port", "65535"),
        ("--gateway-latency-ms", "20-5"),
        ("--no-such-option",),
        ("--ready-file", "/etc/passwd/ready"),
        ("--data-dir", "/etc/passwd"),
    ],
    ids=" ".join,
)
def test_wrong_option_is_reported_in_one_line(
    make_project: Callable[..., Project], arguments: tuple[str, ...]
) -> None:
    runner = make_project("balance").up(*arguments)
    output, complaint = runner.communicate(timeout=PATIENCE_S)
    assert (runner.returncode, output) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", complaint)


def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    script = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    child = Child("deaf", ["/bin/sh", "-c", script], log_file=log_file, env={"PATH": os.defpath})
    wait_for(lambda: child.log_tail() == "deaf")
    stop_all([child], grace_s=0.1)
    assert child.exit_code() == -signal.SIGKILL


async def count_kept(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM kept"))
    finally:
        await connection.close()


def environment_without_tally() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "TALLY_" not in name}


def free_base_port() -> int:
    """A base whose ports, of two replicas, were all free a moment ago.

    A stack opens all of them within seconds, not at once: each process that runs tests at the same
    time has a range of its own.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    each = 20_000 // workers
    while True:
        base = 10_000 + each * worker + free_port() % (each - STACK_PORTS)
        with contextlib.ExitStack() as stack:
            try:
                for offset in (*range(1, 15), *range(101, 105), *range(111, 115)):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", base + offset))
            except OSError:
                continue
            return base


def descendants_of(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found, fresh = set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie whose parent was killed may await its new parent for a moment.
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
