"""A PgBouncer for each test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from deploy.local.postgres import PostgresServer
from tests.pooler.pgbouncer import PgBouncer
from tests.support.databases import SERVICES


@pytest.fixture
def pgbouncer(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path: Path
) -> Iterator[PgBouncer]:
    """With the settings that the test's parameter names, if it has one."""
    for service in SERVICES:
        postgres_server.provision(service)
    settings: Mapping[str, str] = getattr(request, "param", {})
    with PgBouncer(tmp_path, postgres_server, settings) as running:
        yield running
