"""The servers that tests share: real ones, started when first asked for, stopped at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.valkey import ValkeyServer
from tests.support.databases import Databases

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; each test makes databases of its own in it."""
    with PostgresServer(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One Valkey for the whole run; each test uses keys of its own, or flushes it."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Databases:
    """Where a test gets a migrated database of its own from."""
    return Databases(postgres_server)
