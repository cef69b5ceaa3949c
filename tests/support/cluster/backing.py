"""PostgreSQL and Redis of a manifest, replaced by embedded servers.

Of their StatefulSets only max_connections is used, the one option that services notice. The local
runner's code makes the databases and roles.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from unittest import mock

from deploy.local import postgres
from deploy.local.plan import Backends, services
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.secret_files import new_password
from deploy.local.valkey import ValkeyServer
from tests.support.cluster.manifest import ManifestError, Workload

POSTGRES: Final = "postgres"
REDIS: Final = frozenset({"redis", "valkey"})
IMAGES: Final = {POSTGRES, *REDIS}
NOWHERE: Final = Backends(
    {name: ServiceUrls(*["postgresql://nobody@nowhere/none"] * 3) for name in services()},
    redis_url="redis://nowhere",
    gateway_url="",
    gateway_secret_key="none",
)
"""Servers that do not exist, to check a manifest before any server starts."""


@contextlib.contextmanager
def running(workloads: Iterable[Workload], directory: Path) -> Iterator[Backends]:
    """Start the embedded servers for the workloads, on free ports, and make the gateway's key.

    The manifest has the address of the gateway.
    """
    by_image = {workload.program: workload for workload in workloads}
    if POSTGRES not in by_image:
        raise ManifestError("no workload with the image postgres")
    with contextlib.ExitStack() as stack:
        server = PostgresServer(directory / "postgres", durable=False)
        settings = dict(_settings(by_image[POSTGRES]))
        with mock.patch.dict(postgres.SETTINGS, settings):
            stack.enter_context(server)
        redis_url = ""
        if REDIS & set(by_image):
            redis_url = stack.enter_context(ValkeyServer(directory / "valkey")).url
        databases = {name: server.provision(name) for name in services()}
        yield Backends(databases, redis_url, "", new_password())


def _settings(workload: Workload) -> Iterator[tuple[str, str]]:
    """The options ``-c name=value`` of PostgreSQL that affect its clients."""
    command = workload.container.command
    for flag, setting in itertools.pairwise(command):
        name, _, value = setting.partition("=")
        if flag == "-c" and name == "max_connections":
            yield name, value
