"""Seeded services for each module: tests send them invalid requests, which change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.valkey import ValkeyServer
from tests.integration.contract.services import Services, seeded_services
from tests.support.stack import Stack, stack, stack_databases

__all__ = ["stack", "stack_databases"]


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    """With Redis: its errors must not reach a client either."""
    return valkey_server.url


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    """One replica of the order service."""
    return {"orders": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(stack: Stack) -> AsyncIterator[Services]:
    async with seeded_services(stack) as opened:
        yield opened
