"""A PostgreSQL server on a small volume, its standby, and the exporters that watch them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import prometheus_client
import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_files import binaries
from deploy.local.processes import HOST, plain_path
from tests.monitoring.exporters import postgres_exporter, postgres_job
from tests.monitoring.runbooks import Runbooks
from tests.monitoring.scene import Scene
from tests.support.alert_rules import alternatives
from tests.support.prometheus import running_prometheus

VOLUME_MIB: Final = 384
CLAIM: Final = {"namespace": "tally", "persistentvolumeclaim": "data-postgres-0"}
POSTGRES_OFFSET: Final = 6
"""Of its port in a stack, whose ports the pages name."""
SMALL_LOG: Final = """
ALTER SYSTEM SET max_wal_size = '64MB';
ALTER SYSTEM SET min_wal_size = '32MB';
SELECT pg_reload_conf();
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root mounts the small volume that fills"
)


@dataclass(frozen=True)
class Volume:
    """A file system of its own, in memory."""

    directory: Path

    def free(self) -> float:
        """The part that is free."""
        found = os.statvfs(self.directory)
        return found.f_bavail / found.f_blocks


@dataclass(kw_only=True)
class Servers(Scene):
    """The servers that are watched."""

    primary: PostgresServer
    standby: PostgresServer
    volume: Volume
    disk_fills: str
    """The half of TallyPostgresDisk that predicts, as an expression."""


@contextmanager
def running_servers(home: Path, rules: Path) -> Iterator[Servers]:
    """Servers whose alerts are evaluated by these rules. Enter it in the main thread."""
    with ExitStack() as exits:
        volume = exits.enter_context(_mounted(home / "volume"))
        primary = exits.enter_context(PostgresServer(volume.directory / "postgres"))
        primary.provision("order")
        primary.run_sql(SMALL_LOG)
        standby = exits.enter_context(_standby_of(primary, home / "standby"))
        exporter = exits.enter_context(postgres_exporter(primary, home / "of-primary"))
        second = exits.enter_context(postgres_exporter(standby, home / "of-standby"))
        jobs = [
            postgres_job(primary=exporter, standby=second),
            exits.enter_context(_volume_page(volume)),
        ]
        prometheus = exits.enter_context(
            running_prometheus({}, home / "prometheus", rules=rules, jobs=jobs)
        )
        base_port = primary.port - POSTGRES_OFFSET
        runbooks = Runbooks(home / "project", volume.directory, base_port, prometheus)
        yield Servers(
            prometheus=prometheus,
            runbooks=runbooks,
            primary=primary,
            standby=standby,
            volume=volume,
            disk_fills=alternatives(rules, "TallyPostgresDisk")[1],
        )


@contextmanager
def _mounted(directory: Path) -> Iterator[Volume]:
    directory.mkdir()
    size = f"size={VOLUME_MIB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], check=True)
    try:
        yield Volume(directory)
    finally:
        subprocess.run(["umount", directory], check=True)


def _standby_of(primary: PostgresServer, directory: Path) -> PostgresServer:
    """A standby from a base backup, not started."""
    directory.mkdir(mode=0o700)
    shutil.copy(primary.files.data_dir / "passwords.json", directory)
    server = PostgresServer(directory)
    subprocess.run(
        [
            *(binaries() / "pg_basebackup", "-d", primary.admin_url, "-D", server.files.pgdata),
            *("--write-recovery-conf", "--checkpoint=fast"),
            # The primary keeps what the standby has not received.
            *("--create-slot", "--slot=standby"),
        ],
        env=plain_path(),
        check=True,
    )
    for path in (server.files.pgdata, *server.files.pgdata.rglob("*")):
        os.chown(path, server.files.user.uid, server.files.user.gid)
    return server


@contextmanager
def _volume_page(volume: Volume) -> Iterator[dict[str, Any]]:
    """The kubelet's figures of the volume, and the job that scrapes them.

    There is no kubelet here; the figures are those of a real file system under a real server.
    """
    registry = prometheus_client.CollectorRegistry()
    labels = tuple(CLAIM)
    available = prometheus_client.Gauge(
        "kubelet_volume_stats_available_bytes", "Free.", labels, registry=registry
    )
    capacity = prometheus_client.Gauge(
        "kubelet_volume_stats_capacity_bytes", "In all.", labels, registry=registry
    )

    def bytes_of(name: str) -> float:
        found = os.statvfs(volume.directory)
        return float(getattr(found, name) * found.f_frsize)

    available.labels(**CLAIM).set_function(lambda: bytes_of("f_bavail"))
    capacity.labels(**CLAIM).set_function(lambda: bytes_of("f_blocks"))
    server, thread = prometheus_client.start_http_server(0, HOST, registry)
    try:
        target = {"targets": [f"{HOST}:{server.server_port}"]}
        yield {"job_name": "kubelet", "static_configs": [target]}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
