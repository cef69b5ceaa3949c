"""The demo as a process of its own, and the data directory it prepares."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy.local.data_dir import locked
from deploy.local.demo.fresh_data_dir import MARKER, prepare_data_dir
from deploy.local.errors import RunnerError
from deploy.local.monitors import AuditServer
from deploy.local.plan import AUDIT, PROJECT, SERVICES, Backends, Plan, audit_environment
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.state import audit_urls
from deploy.monitoring.panels import Line, View
from deploy.monitoring.views import VIEWS
from tests.integration.local.test_runner import (
    PATIENCE_S,
    Project,
    alive,
    descendants_of,
    environment_without_tally,
    free_base_port,
    wait_for,
)
from tests.support.prometheus import (
    RATE_WINDOW,
    PrometheusClient,
    installed,
    needs_prometheus,
    running_prometheus,
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
        self.base_port = free_base_port()
        self._output = data_dir.with_name("output")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "deploy.local.demo", "--data-dir", data_dir),
                    *("--users", "12", "--seed", KILLS_A_BALANCE_REPLICA),
                    *("--base-port", str(self.base_port), "--gateway-latency-ms", "5-20"),
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


@dataclass(frozen=True)
class EndedDemo:
    """A demo that ran to its end, and what was seen of it from outside."""

    data_dir: Path
    """Its logs are as talkative as they can be."""
    exit_code: int
    output: str
    picture: str
    """What `make watch ARGS=--once` printed during the sale."""
    prometheus: PrometheusClient | None
    """With all metrics of the demo; None where it is not installed."""


@pytest.fixture(scope="module")
def ended_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndedDemo]:
    home = tmp_path_factory.mktemp("demo")
    with contextlib.ExitStack() as exits:
        verbose = {"TALLY_LOG_LEVEL": "debug", "TALLY_LOG_CALLS": "all"}
        demo = exits.enter_context(running_demo(home / "data", settings=verbose))
        plan = Plan(base_port=demo.base_port)
        prometheus = (
            exits.enter_context(
                running_prometheus(plan.metrics_pages(audit=True), home / "prometheus")
            )
            if installed()
            else None
        )
        demo.wait_for_line("The sale")
        descendants = descendants_of(demo.process.pid)
        demo.wait_for_line("order, pay, cancel")
        picture = subprocess.run(
            [sys.executable, "-m", "deploy.watch", "--once", "--data-dir", str(demo.data_dir)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        exit_code = demo.process.wait(DEMO_LIMIT_S)
        demo.assert_nothing_left(descendants)
        if prometheus is not None:
            let_audit_be_scraped(plan, demo.data_dir, prometheus)
        yield EndedDemo(
            demo.data_dir, exit_code, demo.output, picture.stdout + picture.stderr, prometheus
        )


def let_audit_be_scraped(plan: Plan, data_dir: Path, prometheus: PrometheusClient) -> None:
    """Audit the books that the demo left as `make up MONITORING=1` does, for the panels."""
    log_file = data_dir / "logs" / "audit-0.log"
    audit = AuditServer(data_dir / AUDIT, plan.metrics_page_port(AUDIT), log_file)
    with audit_urls(data_dir) as urls:
        databases = {name: ServiceUrls("", "", url) for name, url in urls.items()}
        own = dataclasses.replace(plan, data_dir=data_dir)
        audit.environment = audit_environment(own, Backends(databases, "", "", ""))
        with audit:
            # The panels are evaluated once a second, at any time of it.
            wait_for(lambda: len(prometheus.values("tally_audit_standing_minor")) >= 3)


def test_books_balance_after_a_kill_and_no_process_is_left(ended_demo: EndedDemo) -> None:
    assert ended_demo.exit_code == 0, ended_demo.output
    assert "kill -9 balance-" in ended_demo.output
    assert "NOT TRUE" not in ended_demo.output
    assert "6 coupons issued of 6" in ended_demo.output
    assert "make up" in ended_demo.output


def test_failures_are_logged_and_no_secrets(ended_demo: EndedDemo) -> None:
    assert_failures_are_logged_and_no_secrets(ended_demo.data_dir)


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
        assert re.search(rf'"payment_key": "{card}.*"event": "gateway_call"', of_payments), card


def test_watch_prints_one_picture_of_the_sale(ended_demo: EndedDemo) -> None:
    lines = ended_demo.picture.splitlines()
    assert len(lines) == 30, ended_demo.picture
    assert "of 8 replicas serve" in lines[0]
    assert max(map(len, lines)) == 100
    for word in ("balance", "coupon", "order", "payment", "account", "going forward"):
        assert word in ended_demo.picture


def never_happened(prometheus: PrometheusClient, line: Line) -> bool:
    """Whether it shows only counters of events that no replica has had: they are not exported."""
    return all(
        series.name.endswith("_total") and not prometheus.values(series.name)
        for series in line.query.series()
    )


@needs_prometheus
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_panel_has_data_of_the_demo(ended_demo: EndedDemo, view: View) -> None:
    assert ended_demo.prometheus is not None
    without = [
        f"{panel.title}: {line.query.promql()}"
        for panel in view.panels
        for line in panel.lines
        if not ended_demo.prometheus.values(line.query.promql(RATE_WINDOW))
        and not never_happened(ended_demo.prometheus, line)
    ]
    assert "\n".join(without) == ""


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


@pytest.mark.parametrize(
    ("offset", "purpose", "option"),
    [
        (3, "order-0", "--base-port 60050"),
        (113, "the metrics page of order-1", "--metrics-port 61050"),
    ],
)
def test_nothing_is_moved_if_a_port_is_taken(
    tmp_path: Path, offset: int, purpose: str, option: str
) -> None:
    data_dir = tmp_path / "data"
    with locked(data_dir):
        (data_dir / "mine").touch()
    base_port = free_base_port()
    with socket.create_server(("127.0.0.1", base_port + offset)):
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
    complaint = (
        f"error: port {base_port + offset} on 127.0.0.1, wanted for {purpose}, is taken: stop what "
        f"listens there, or use other ports with {option} (with make: ARGS='{option}')\n"
    )
    assert (refused.stdout, refused.stderr) == ("", complaint)
    assert (data_dir / "mine").exists()


def command_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
