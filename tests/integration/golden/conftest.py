"""All services of this release, on the rows of an earlier one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from deploy.local.gateway.simulator import GatewaySimulator
from tests.integration.golden.records import RELEASES, load
from tests.support.databases import Databases, StackDatabases
from tests.support.stack import Stack, Wire, running_stack


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewaySimulator]:
    """A gateway of the test's own: the keys in the rows are the same in every test."""
    with GatewaySimulator(tmp_path / "gateway.db") as running:
        yield running


@pytest.fixture
def golden_databases(databases: Databases) -> Iterator[StackDatabases]:
    with databases.clone_all() as opened:
        yield opened


@pytest.fixture
async def stack(
    release: Path, golden_databases: StackDatabases, gateway: GatewaySimulator
) -> AsyncIterator[Stack]:
    """All services, on freshly migrated databases with the release's rows."""
    await load(release, golden_databases)
    # Of a cancelled payment that the gateway does not know, the key is over.
    connection = await asyncpg.connect(golden_databases.urls["payment"].owner)
    await connection.execute("UPDATE payments SET confirm_time = now() - interval '1 h'")
    await connection.close()
    async with running_stack(golden_databases, gateway, "", Wire(), orders=1) as running:
        yield running
