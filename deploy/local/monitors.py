"""What watches a local stack: the audit, and Prometheus and Alertmanager with the files of
deploy/monitoring.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from deploy.local.plan import AUDIT, PROJECT, SERVICES, Backends, Plan
from deploy.local.processes import HOST, Child, LocalServer, plain_path

MONITORING: Final = PROJECT / "deploy" / "monitoring"
RULES: Final = MONITORING / "rules"
ALERTMANAGER_CONFIG: Final = MONITORING / "alertmanager.yaml"
PACKAGES: Final = "apt-get install prometheus prometheus-alertmanager"
"""Where to get both, on Debian or Ubuntu."""
SCRAPE_INTERVAL: Final = "5s"
CALL_LIMIT_S: Final = 1.0


class Monitor(LocalServer):
    """A server that says over HTTP when it is ready."""

    ready_path = "/-/ready"

    def _is_ready(self, child: Child) -> bool:
        if child.exit_code() is not None:
            return False
        try:
            reply = httpx.get(f"{self.url}{self.ready_path}", timeout=CALL_LIMIT_S, trust_env=False)
        except httpx.HTTPError:
            return False
        return reply.is_success

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


class AuditServer(Monitor):
    """`python -m deploy.audit serve`, with its metrics page on ``port``."""

    ready_path = "/metrics"
    port_option = "--metrics-port 61050"

    def __init__(self, directory: Path, port: int, log_file: Path) -> None:
        """``directory``: of the checkpoint."""
        super().__init__(f"{AUDIT}-0", port, log_file)
        self.environment: Mapping[str, str] = {}
        """Its settings, known when the databases run. Set before it starts."""
        self._directory = directory

    def _spawn(self) -> Child:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Child(
            self.name,
            [sys.executable, "-m", "deploy.audit", "serve"],
            log_file=self.log_file,
            env=self.environment,
            cwd=PROJECT,
        )


class AlertmanagerServer(Monitor):
    """One Alertmanager, which keeps silences in ``directory``."""

    def __init__(self, program: str, directory: Path, port: int, log_file: Path) -> None:
        super().__init__("Alertmanager", port, log_file)
        self._program = program
        self._directory = directory

    def _spawn(self) -> Child:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._directory / "alertmanager.yaml"
        file.write_text(json.dumps(alertmanager_config(), indent=2))
        return Child(
            "alertmanager",
            [
                *(self._program, f"--config.file={file}"),
                *(f"--storage.path={self._directory}", "--cluster.listen-address="),
                f"--web.listen-address={HOST}:{self.port}",
            ],
            log_file=self.log_file,
            env=plain_path(),
            cwd=self._directory,
        )


class PrometheusServer(Monitor):
    """One Prometheus, which keeps a day of metrics in ``directory``."""

    def __init__(
        self,
        program: str,
        directory: Path,
        port: int,
        log_file: Path,
        config: Mapping[str, Any],
    ) -> None:
        """``config``: the content of its configuration file."""
        super().__init__("Prometheus", port, log_file)
        self._program = program
        self._directory = directory
        self._config = config

    def _spawn(self) -> Child:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._directory / "prometheus.yaml"
        # JSON is YAML.
        file.write_text(json.dumps(self._config, indent=2))
        return Child(
            "prometheus",
            [
                *(self._program, f"--config.file={file}"),
                *(f"--storage.tsdb.path={self._directory / 'data'}",),
                *("--storage.tsdb.retention.time=1d",),
                f"--web.listen-address={HOST}:{self.port}",
            ],
            log_file=self.log_file,
            env=plain_path(),
            cwd=self._directory,
        )


def prometheus_config(
    pages: Mapping[str, Sequence[str]],
    *,
    interval: str = SCRAPE_INTERVAL,
    alertmanager: str | None = None,
    rules: Path = RULES,
) -> dict[str, Any]:
    """Scrape these addresses of each service, and evaluate all files of rules in a directory."""
    targets = [
        {"targets": [address], "labels": {"service": service, "instance": f"{service}-{replica}"}}
        for service, addresses in pages.items()
        for replica, address in enumerate(addresses)
    ]
    alerting = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [f"{rules}/*.yaml"],
        "alerting": {"alertmanagers": alerting},
        "scrape_configs": [{"job_name": "tally", "static_configs": targets}],
    }


def alertmanager_config() -> dict[str, Any]:
    """The routes and inhibitions of deploy/monitoring, with receivers that send nothing."""
    config: dict[str, Any] = yaml.safe_load(ALERTMANAGER_CONFIG.read_text(encoding="utf-8"))
    config.pop("global", None)
    config["receivers"] = [{"name": receiver["name"]} for receiver in config["receivers"]]
    return config


def planned_audit(plan: Plan, named: Backends, report: Callable[[str], None]) -> AuditServer | None:
    """The audit of a stack, not started. None if it cannot read all books: ``report`` says why.

    ``named``: the databases that are not the runner's own.
    """
    unread = [service for service, urls in named.databases.items() if not urls.audit]
    absent = [service for service in SERVICES if service not in plan.services]
    if unread:
        report(f"no audit: TALLY_{unread[0].upper()}_AUDIT_DATABASE_URL is not set")
    elif absent:
        report(f"no audit: the stack has no {absent[0]} service")
    else:
        log_file = plan.data_dir / "logs" / f"{AUDIT}-0.log"
        return AuditServer(plan.data_dir / AUDIT, plan.metrics_page_port(AUDIT), log_file)
    return None


def installed_monitors(
    plan: Plan, pages: Mapping[str, Sequence[str]], report: Callable[[str], None]
) -> list[LocalServer]:
    """Prometheus and Alertmanager if they are installed, not started; ``report`` gets what is
    missing. ``pages``: the addresses of all metrics pages, by service.
    """
    found = {name: shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")}
    missing = [name for name, program in found.items() if program is None]
    if missing:
        report(
            f"not installed: {' and '.join(missing)}; the stack runs without. "
            f"On Debian or Ubuntu: `{PACKAGES}`"
        )
    monitors: list[LocalServer] = []
    directory, logs = plan.data_dir / "monitoring", plan.data_dir / "logs"
    alertmanager = None
    if program := found["prometheus-alertmanager"]:
        port = plan.port("alertmanager")
        alertmanager = f"{HOST}:{port}"
        log_file = logs / "alertmanager.log"
        monitors.append(AlertmanagerServer(program, directory / "alertmanager", port, log_file))
    if program := found["prometheus"]:
        config = prometheus_config(pages, alertmanager=alertmanager)
        log_file = logs / "prometheus.log"
        port = plan.port("prometheus")
        monitors.append(PrometheusServer(program, directory / "prometheus", port, log_file, config))
    return monitors
