"""A replica with identity and TLS, and the blackbox exporter that looks at its certificate."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from common.db.migrations import migrate
from common.tls import AUTHORITIES, CERTIFICATE, KEY
from deploy.local.identities import Identities
from deploy.local.plan import PROJECT, plain_environment
from deploy.local.postgres import PostgresServer
from deploy.local.processes import Child, free_port
from deploy.local.secret_files import write_secret
from tests.monitoring.exporters import BLACKBOX, Exporter
from tests.monitoring.runbooks import Runbooks
from tests.monitoring.scene import Scene
from tests.support.certificates import DAY, HOST, Authority, now, write_trusted
from tests.support.prometheus import running_prometheus

REPLICA: Final = "balance-0"
RENEWED: Final = now() + 90 * DAY
EXPIRES: Final = now() + 5 * DAY
"""Sooner than the limits for ports and for other servers."""
BOTH_FIRE: Final = 'count(ALERTS{alertname="TallyCertificateExpires",alertstate="firing"}) == 2'
"""As the replica reports its certificate, and as the exporter sees it."""


@dataclass(kw_only=True)
class Replica(Scene):
    """One replica of the balance service."""

    files: Path
    """The directory of its certificate."""
    keys: Path
    """The file with the issuer's keys."""
    authority: Authority
    process: Child


def write_certificate(directory: Path, authority: Authority, ends: dt.datetime) -> None:
    certificate, key = authority.sign(HOST, "metrics.tally", ends=ends)
    write_secret(directory / KEY, key)
    write_secret(directory / CERTIFICATE, certificate)


@contextmanager
def running_replica(home: Path, rules: Path) -> Iterator[Replica]:
    """A replica whose alerts are evaluated by these rules. Enter it in the main thread."""
    authority, data_dir = Authority(), home / "data"
    files = data_dir / "tls"
    files.mkdir(parents=True)
    write_trusted(files, authority)
    write_certificate(files, authority, RENEWED)
    identities = Identities(data_dir / "identity")
    keys = data_dir / "identity/jwks.json"
    port, page_port = free_port(), free_port()
    with ExitStack() as exits:
        server = exits.enter_context(PostgresServer(data_dir / "postgres", durable=False))
        urls = server.provision("balance")
        asyncio.run(migrate(urls.owner, PROJECT / "balance_service/migrations"))
        process = Child(
            REPLICA,
            [sys.executable, "-m", "balance_service"],
            log_file=data_dir / f"logs/{REPLICA}.log",
            env=plain_environment()
            | identities.environment()
            | {
                "TALLY_BALANCE_DATABASE_URL": urls.runtime,
                "TALLY_BALANCE_REDIS_URL": "",
                "TALLY_BALANCE_BIND": f"{HOST}:{port}",
                "TALLY_BALANCE_METRICS_PORT": str(page_port),
                "TALLY_BALANCE_REPLICA": REPLICA,
                "TALLY_TLS_DIR": str(files),
            },
            cwd=PROJECT,
        )
        exits.callback(process.stop)
        exporter = exits.enter_context(_blackbox(home, files / AUTHORITIES))
        prometheus = exits.enter_context(
            running_prometheus(
                {}, home / "prometheus", rules=rules, jobs=_jobs(files, port, page_port, exporter)
            )
        )
        runbooks = Runbooks(home / "project", data_dir, server.port - 6, prometheus)
        yield Replica(
            prometheus=prometheus,
            runbooks=runbooks,
            filled_in={"<host>:<port>": f"{HOST}:{port}"},
            files=files,
            keys=keys,
            authority=authority,
            process=process,
        )


def _blackbox(home: Path, authorities: Path) -> Exporter:
    """The module that deploy/monitoring/prometheus.yaml names."""
    tls = {"prober": "tcp", "tcp": {"tls": True, "tls_config": {"ca_file": str(authorities)}}}
    file = home / "blackbox.yaml"
    file.write_text(yaml.safe_dump({"modules": {"tcp_tls": tls}}), encoding="utf-8")
    return Exporter(BLACKBOX, home, f"--config.file={file}")


def _jobs(files: Path, port: int, page_port: int, exporter: Exporter) -> list[dict[str, Any]]:
    """The replica's page, and the certificate of its port as the exporter sees it."""
    times = {"scrape_interval": "2s", "scrape_timeout": "2s"}
    page = {"targets": [f"{HOST}:{page_port}"]}
    page_labels = {"service": "balance", "instance": REPLICA}
    return [
        {
            "job_name": "tally-over-tls",
            "scheme": "https",
            "tls_config": {
                "ca_file": str(files / AUTHORITIES),
                "server_name": "metrics.tally",
            },
            "static_configs": [{**page, "labels": page_labels}],
        },
        {
            "job_name": "tally-certificates",
            **times,
            "metrics_path": "/probe",
            "params": {"module": ["tcp_tls"]},
            "static_configs": [{"targets": [f"{HOST}:{port}"]}],
            "relabel_configs": [
                {"source_labels": ["__address__"], "target_label": "__param_target"},
                {"source_labels": ["__param_target"], "target_label": "instance"},
                {"target_label": "__address__", "replacement": f"{HOST}:{exporter.port}"},
            ],
        },
    ]


@asynccontextmanager
async def certificate_not_renewed(replica: Replica) -> AsyncIterator[None]:
    """What renews the certificate has failed for weeks; then it writes a new one."""
    write_certificate(replica.files, replica.authority, EXPIRES)
    try:
        assert await replica.until_holds(BOTH_FIRE)
        yield
    finally:
        write_certificate(replica.files, replica.authority, RENEWED)


@asynccontextmanager
async def keys_not_readable(replica: Replica) -> AsyncIterator[None]:
    """The issuer's keys are overwritten by a page of errors."""
    good = replica.keys.read_text(encoding="utf-8")
    write_secret(replica.keys, "<html>502 Bad Gateway</html>")
    try:
        yield
    finally:
        write_secret(replica.keys, good)
