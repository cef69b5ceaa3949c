"""All four services, and a client of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tally_client import Tally
from tests.support.stack import Stack, stack, stack_databases, stack_options

__all__ = ["stack", "stack_databases", "stack_options"]


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Without Redis: the client sees no difference."""
    return ""


@pytest.fixture(scope="module")
def addresses(stack: Stack) -> dict[str, list[str]]:
    """The addresses of each service; the order service has two replicas."""
    return {**stack.peers, "order": stack.order_addresses}


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
