"""An order service of two replicas for each test, with Redis and without."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deploy.local.postgres_roles import ServiceUrls
from tests.support.orders import Shop, shop
from tests.support.stack import (
    stack,
    stack_databases,
    stack_options,
)

__all__ = ["stack", "stack_databases", "stack_options"]


@pytest.fixture
async def order(order_database: ServiceUrls, redis_url: str) -> AsyncIterator[Shop]:
    """A client of two replicas on one database."""
    async with shop(2, database_url=order_database.runtime, redis_url=redis_url) as opened:
        yield opened
