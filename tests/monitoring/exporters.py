"""The exporters of others that the rules need, as Debian packages them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.local.monitors import Monitor
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import url
from deploy.local.processes import HOST, Child, plain_path

POSTGRES: Final = "prometheus-postgres-exporter"
BLACKBOX: Final = "prometheus-blackbox-exporter"
ROLE: Final = "exporter"
_PASSWORD: Final = "exporter"
_CREATE_ROLE: Final = f"""
SELECT 'CREATE ROLE {ROLE}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') \\gexec
ALTER ROLE {ROLE} LOGIN PASSWORD '{_PASSWORD}';
GRANT pg_monitor TO {ROLE};
GRANT CONNECT ON DATABASE postgres TO {ROLE};
"""
# Of 0.13 and newer; Debian 12 has 0.11.
_LAG: Final = """
pg_replication:
  query: "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 0
    WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE GREATEST(0, EXTRACT(EPOCH FROM now() - pg_last_xact_replay_timestamp()))
    END AS lag_seconds"
  master: true
  metrics: [{lag_seconds: {usage: GAUGE, description: Replication lag in seconds}}]
"""


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where the program is not installed; its package has the same name."""
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"not installed, on Debian or Ubuntu: `apt-get install {program}`",
    )


class Exporter(Monitor):
    """One exporter on a free port."""

    ready_path = "/metrics"

    def __init__(self, program: str, directory: Path, *arguments: str, **environment: str) -> None:
        super().__init__(program, 0, directory / f"{program}.log")
        self._arguments = arguments
        self._environment = environment

    def _spawn(self) -> Child:
        program = shutil.which(self.name)
        assert program is not None
        return Child(
            self.name,
            [program, *self._arguments, f"--web.listen-address={HOST}:{self.port}"],
            log_file=self.log_file,
            env=plain_path() | self._environment,
        )


def postgres_exporter(server: PostgresServer, directory: Path) -> Exporter:
    """The exporter of a server, with a role that has no more than pg_monitor. Not started.

    A standby has the role from its primary.
    """
    directory.mkdir(exist_ok=True)
    if server.run_sql("SELECT NOT pg_is_in_recovery()").strip() == "t":
        server.run_sql(_CREATE_ROLE)
    queries = directory / "queries.yaml"
    queries.write_text(_LAG, encoding="utf-8")
    source = url(ROLE, _PASSWORD, f"{HOST}:{server.port}", "postgres?sslmode=disable")
    return Exporter(POSTGRES, directory, f"--extend.query-path={queries}", DATA_SOURCE_NAME=source)


def postgres_job(**exporters: Exporter) -> dict[str, Any]:
    """What Prometheus scrapes, as in deploy/monitoring/prometheus.yaml: by the instance's name."""
    targets = [
        {"targets": [f"{HOST}:{each.port}"], "labels": {"service": "order", "instance": name}}
        for name, each in exporters.items()
    ]
    # An exporter that cannot log in tries again for a second.
    times = {"scrape_interval": "2s", "scrape_timeout": "2s"}
    return {"job_name": "postgres", "static_configs": targets, **times}
