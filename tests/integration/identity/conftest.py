"""All four services with identity on, in the test's own process, and tokens for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.identities import Identities, Issuer
from deploy.local.valkey import ValkeyServer
from tests.integration.contract.services import Services, seeded_services
from tests.support.stack import Stack, stack, stack_databases
from tests.support.tokens import Authorized

__all__ = ["stack", "stack_databases"]

STREAMING_SERVICE = {"watcher": ["tally.order.v1.OrderService/WatchOrder"]}


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    return valkey_server.url


@pytest.fixture(scope="module")
def pause_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of paused methods of all services. It does not exist yet."""
    return tmp_path_factory.mktemp("pauses") / "paused"


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory, pause_file: Path) -> Iterator[Identities]:
    """The keys and tokens of a local stack. Settings that are read meanwhile turn identity on."""
    made = Identities(tmp_path_factory.mktemp("identity"))
    environment = made.environment()
    own = json.loads(environment["TALLY_AUTH_SERVICES"])
    environment["TALLY_AUTH_SERVICES"] = json.dumps({**own, **STREAMING_SERVICE})
    environment["TALLY_PAUSE_FILE"] = str(pause_file)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("common.identity.jwks.REFRESH_S", 0.05)
        patch.setattr("common.rpc.pauses.INTERVAL_S", 0.05)
        yield made


@pytest.fixture(scope="module")
def issuer(identities: Identities) -> Issuer:
    return identities.issuer


@pytest.fixture(scope="module")
def stack_options(identities: Identities) -> dict[str, Any]:
    """One replica of the order service. Its settings are read when identity is on."""
    return {"orders": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(stack: Stack, issuer: Issuer) -> AsyncIterator[Services]:
    """Seeded services, as an operator calls them."""
    token = issuer.token("olga", "operator")
    async with seeded_services(stack, through=lambda opened: Authorized(opened, token)) as opened:
        yield opened
