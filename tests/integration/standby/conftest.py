"""All services on databases whose COMMITs wait for a synchronous standby."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.valkey import ValkeyServer
from tests.integration.contract.services import Services, seeded_services
from tests.support.databases import Databases, StackDatabases, name_of
from tests.support.payments import SHORT_GATEWAY_LIMITS
from tests.support.stack import Stack, stack
from tests.support.standby import Standby

__all__ = ["stack"]


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    """With Redis: a mark lets the payment service read before it writes."""
    return valkey_server.url


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    """With short leases: what began before the standby was away is soon taken over."""
    return {"orders": 1, "saga_lease_s": 1.0, "payment": {**SHORT_GATEWAY_LIMITS, "lease_s": 1.0}}


@pytest.fixture(scope="module")
def stack_databases(databases: Databases) -> Iterator[StackDatabases]:
    with databases.clone_all() as cloned:
        yield cloned


@pytest.fixture(scope="module")
def standby(stack_databases: StackDatabases) -> Standby:
    """The standby of all services; it is there."""
    required = Standby(stack_databases.server, map(name_of, stack_databases.urls.values()))
    required.require()
    return required


@pytest.fixture(scope="module")
def many_connections() -> Iterator[None]:
    """So many that COMMITs which wait leave some for other calls, and short waits for rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALLY_POOL_SIZE", "90")
        patch.setattr("common.db.database.LOCK_TIMEOUT_MS", 100)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(
    many_connections: None, standby: Standby, stack: Stack
) -> AsyncIterator[Services]:
    async with seeded_services(stack) as opened:
        yield opened
        for connection in opened.databases.values():
            await connection.close()
