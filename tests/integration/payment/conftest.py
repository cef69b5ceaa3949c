"""A payment service of two replicas for each test, with Redis and without, and a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.db.database import Database, open_pools
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from tests.support.payments import Serve, payment_replicas


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[GatewaySimulator]:
    """A gateway that a test may stop."""
    with GatewaySimulator(tmp_path / "gateway.db") as running:
        yield running


@pytest.fixture
async def sessions(payment_database: ServiceUrls) -> AsyncIterator[Database]:
    """Connections to the database with the service's own rights."""
    opened = open_pools(payment_database.runtime, application_name="test", pool_size=12)
    yield opened
    await opened.close()


@pytest.fixture
def serve(payment_database: ServiceUrls, redis_url: str) -> Serve:
    """Opens replicas on the test's database: ``serve(count, gateway, **settings)``."""
    return lambda count, gateway, **settings: payment_replicas(
        count, payment_database, gateway, redis_url, **settings
    )


@pytest.fixture
async def stubs(serve: Serve, gateway: GatewaySimulator) -> AsyncIterator[list[Any]]:
    """A client of each of two replicas on one database."""
    async with serve(2, gateway) as opened:
        yield opened


@pytest.fixture
def payment(stubs: list[Any]) -> Any:
    """A client of the first replica."""
    return stubs[0]


@pytest.fixture
def elsewhere(stubs: list[Any]) -> Any:
    """A client of the second replica."""
    return stubs[1]
