"""Databases of one service, given by the parameter ``service``: balance if a test has none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases


@pytest.fixture
def service() -> str:
    return "balance"


@pytest.fixture
def migrated(databases: Databases, service: str) -> Iterator[ServiceUrls]:
    """A database with the service's schema."""
    with databases.clone(service) as urls:
        yield urls


@pytest.fixture
def empty(
    databases: Databases, postgres_server: PostgresServer, service: str
) -> Iterator[ServiceUrls]:
    """A database without a schema."""
    with databases.clone(service):
        pass  # creates the service's roles
    name = f"test_{service}_empty"
    yield postgres_server.create_database(name, service=service)
    postgres_server.drop_database(name)
