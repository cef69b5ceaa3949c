"""One world for each module: tests break their requests and must leave it as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
import pytest_asyncio

from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tests.integration.contract.world import World, opened_world
from tests.support.databases import Databases


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySimulator]:
    """A gateway that nobody else charges anything at."""
    with GatewaySimulator(tmp_path_factory.mktemp("gateway") / "gateway.db") as running:
        yield running


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[dict[str, ServiceUrls]]:
    """A database of each service."""
    with ExitStack() as stack:
        yield {
            service: stack.enter_context(databases.clone(service))
            for service in ("balance", "coupon", "order", "payment")
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    urls: dict[str, ServiceUrls], gateway: GatewaySimulator, valkey_server: ValkeyServer
) -> AsyncIterator[World]:
    async with opened_world(urls, gateway, valkey_server.url) as opened:
        yield opened
