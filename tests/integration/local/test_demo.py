"""The demo as a process of its own, and the data directory it prepares."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from deploy.local.data_dir import locked
from deploy.local.demo.fresh_data_dir import MARKER, prepare_data_dir
from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT, SERVICES
from tests.integration.local.test_runner import (
    PATIENCE_S,
    Project,
    alive,
    descendants_of,
    environment_without_tally,
    free_base_port,
    wait_for,
)

KILLS_A_BALANCE_REPLICA: Final = "2"
DEMO_LIMIT_S: Final = 90.0
"""Most of it is waiting: for leases to run out and for an unpaid order to expire."""


class Demo:
    """A running demo with few customers."""

    def __init__(
        self, data_dir: Path, project: Path = PROJECT, settings: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self._output = data_dir.with_name("output")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "deploy.local.demo", "--data-dir", data_dir),
                    *("--users", "12", "--seed", KILLS_A_BALANCE_REPLICA),
                    *("--base-port", str(free_base_port()), "--gateway-latency-ms", "5-20"),
                ],
                cwd=project,
                env=environment_without_tally() | {**(settings or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for_line(self, text: str) -> None:
        wait_for(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output

    def assert_nothing_left(self, descendants: set[int]) -> None:
        wait_for(lambda: not any(alive(pid) for pid in descendants))
        assert not (self.data_dir / "postgres" / "pgdata" / "postmaster.pid").exists()


@contextlib.contextmanager
def running_demo(
    data_dir: Path, project: Path = PROJECT, settings: Mapping[str, str] | None = None
) -> Iterator[Demo]:
    running = Demo(data_dir, project, settings)
    yield running
    running.process.terminate()
    running.process.wait(PATIENCE_S)


def test_books_balance_after_a_kill_and_no_process_is_left(tmp_path: Path) -> None:
    verbose = {"TALLY_LOG_LEVEL": "debug", "TALLY_LOG_CALLS": "all"}
    with running_demo(tmp_path / "data", settings=verbose) as demo:
        demo.wait_for_line("The sale")
        descendants = descendants_of(demo.process.pid)
        assert demo.process.wait(DEMO_LIMIT_S) == 0, demo.output
        assert "kill -9 balance-" in demo.output
        assert "NOT TRUE" not in demo.output
        assert "6 coupons issued of 6" in demo.output
        assert "make up" in demo.output
        demo.assert_nothing_left(descendants)
        assert_failures_are_logged_and_no_secrets(demo.data_dir)


def assert_failures_are_logged_and_no_secrets(data_dir: Path) -> None:
    """In the logs of all services, of the gateway and of the servers, at their most talkative."""
    secrets = [
        (data_dir / "gateway.key").read_text().strip(),
        *json.loads((data_dir / "postgres" / "passwords.json").read_text()).values(),
        *re.findall("requirepass (.+)", (data_dir / "valkey" / "valkey.conf").read_text()),
    ]
    assert len(secrets) > 10
    logs = {file.name: file.read_text() for file in (data_dir / "logs").iterdir()}
    assert [name for name, text in logs.items() if any(each in text for each in secrets)] == []
    of_payments = "".join(text for name, text in logs.items() if name.startswith("payment"))
    for card in ("decline_", "error_"):
        assert re.search(rf'"event": "gateway_call".*"payment_key": "{card}', of_payments), card


def test_death_of_a_needed_process_ends_the_demo(tmp_path: Path) -> None:
    """The services are stand-ins, which do not know the calls of the sale."""
    project = Project(tmp_path, SERVICES)
    with running_demo(project.data_dir, project.home) as demo:
        demo.wait_for_line("The sale")
        descendants = descendants_of(demo.process.pid)
        gateway = next(pid for pid in descendants if "deploy.local.gateway" in command_of(pid))
        os.kill(gateway, signal.SIGKILL)
        assert demo.process.wait(PATIENCE_S) == 1
        assert f"error: gateway (pid {gateway}) died" in demo.output
        demo.assert_nothing_left(descendants)


def test_data_of_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    prepare_data_dir(data_dir, pytest.fail)
    with locked(data_dir):
        (data_dir / "old").touch()
    prepare_data_dir(data_dir, pytest.fail)
    assert [file.name for file in tmp_path.rglob("*")] == ["data", MARKER]


def test_data_of_a_user_is_moved_aside(tmp_path: Path) -> None:
    data_dir, reported = tmp_path / "data", list[str]()
    with locked(data_dir):
        (data_dir / "mine").write_text("precious")
    prepare_data_dir(data_dir, reported.append)
    (aside,) = tmp_path.glob("data-before-demo-*")
    assert (aside / "mine").read_text() == "precious"
    assert reported == [f"your data in {data_dir} was moved to {aside}"]
    assert [file.name for file in data_dir.iterdir()] == [MARKER]


def test_directory_without_a_stack_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("precious")
    with pytest.raises(RunnerError, match="something else"):
        prepare_data_dir(tmp_path, pytest.fail)
    assert [file.name for file in tmp_path.iterdir()] == ["letter"]


def test_running_stack_is_left_unchanged(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunnerError, match="in use by another runner"):
        prepare_data_dir(tmp_path, pytest.fail)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_nothing_is_moved_if_a_port_is_taken(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with locked(data_dir):
        (data_dir / "mine").touch()
    base_port = free_base_port()
    with socket.create_server(("127.0.0.1", base_port + 3)):
        refused = subprocess.run(
            [
                *(sys.executable, "-m", "deploy.local.demo"),
                *("--data-dir", data_dir, "--base-port", str(base_port)),
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert refused.returncode == 1
    complaint = f"error: port {base_port + 3} on 127.0.0.1, wanted for order-0, is taken\n"
    assert (refused.stdout, refused.stderr) == ("", complaint)
    assert (data_dir / "mine").exists()


def command_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
