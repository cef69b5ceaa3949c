"""kill -9 of any process during the demo, then `up`, then 40 s: the books balance.

The demo also kills a replica itself, and its customers continue with the others. Whatever the
killed process had begun must be completed or compensated by its successors.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.plan import PROJECT
from tests.integration.local.test_demo import command_of
from tests.integration.local.test_runner import (
    descendants_of,
    environment_without_tally,
    free_base_port,
    wait_for,
)

HEALING_S = 40
DEMO_LIMIT_S = 150
STOP_LIMIT_S = 60
TARGETS = (
    "balance_service",
    "coupon_service",
    "order_service",
    "payment_service",
    "deploy.local.gateway",
    "postgres",
    "valkey",
    "deploy.local.demo",
)


def run(*arguments: str | Path, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=PROJECT,
            env=environment_without_tally(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = run(
        *("deploy.local.demo", "--data-dir", tmp_path / "data", "--users", "40"),
        *("--base-port", str(free_base_port())),
        output=tmp_path / "demo.log",
    )
    yield process
    process.terminate()
    process.wait(STOP_LIMIT_S)


def victim_of(target: str, demo: subprocess.Popen[bytes], data_dir: Path) -> int:
    if target == "deploy.local.demo":
        return demo.pid
    if target == "postgres":
        return int((data_dir / "postgres" / "pgdata" / "postmaster.pid").read_text().split()[0])
    return max(pid for pid in descendants_of(demo.pid) if target in command_of(pid))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("target", TARGETS)
def test_books_balance_after_a_kill(
    target: str, demo: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    log = tmp_path / "demo.log"
    wait_for(lambda: re.search(r"order, pay, cancel: \d", log.read_text()) is not None)
    os.kill(victim_of(target, demo, tmp_path / "data"), signal.SIGKILL)
    demo.wait(DEMO_LIMIT_S)

    ready = tmp_path / "ready.json"
    stack = run(
        *("deploy.local", "up", "--data-dir", tmp_path / "data", "--ready-file", ready),
        *("--base-port", str(free_base_port())),
        output=tmp_path / "up.log",
    )
    try:
        wait_for(lambda: ready.exists() or stack.poll() is not None)
        assert stack.poll() is None, (tmp_path / "up.log").read_text()
        time.sleep(HEALING_S)
        audit = subprocess.run(
            [
                *(sys.executable, "-m", "deploy.audit", "-v", "--no-foreign"),
                *("--data-dir", tmp_path / "data"),
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        stack.terminate()
        stack.wait(STOP_LIMIT_S)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "0 not ended" in audit.stdout, audit.stdout
