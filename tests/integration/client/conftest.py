"""All four services, and a client of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tally_client import Tally
from tests.support.stack import (
    Stack,
    gateway,
    order_replicas,
    stack,
    stack_databases,
    stack_options,
)

__all__ = ["gateway", "stack", "stack_databases", "stack_options"]


@pytest.fixture(scope="module")
def stack_redis_url() -> str:
    """Without Redis: the client sees no difference."""
    return ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def addresses(stack: Stack) -> AsyncIterator[dict[str, list[str]]]:
    """The addresses of each service; the order service has two replicas."""
    async with order_replicas(2, stack.databases, stack.peers, stack.redis_url) as order:
        yield {**stack.peers, "order": order}


@pytest_asyncio.fixture(loop_scope="module")
async def tally(addresses: dict[str, list[str]]) -> AsyncIterator[Tally]:
    """A client of all services."""
    async with Tally(
        balance=addresses["balance"],
        coupon=addresses["coupon"],
        order=addresses["order"],
        payment=addresses["payment"],
    ) as opened:
        yield opened
