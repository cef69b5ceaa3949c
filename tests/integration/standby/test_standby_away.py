"""While the synchronous standby is away no reply to a write is OK, and no write is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import grpc
import pytest

from tests.integration.contract.services import Services
from tests.integration.contract.statuses import Status
from tests.support.contract import METHODS
from tests.support.databases import StackDatabases
from tests.support.payments import until
from tests.support.standby import Standby

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

OF_NO_SAGA: Final = {"RetrySaga", "ResolveSaga"}
"""No saga in these services needs attention."""
OF_REDIS: Final = {"QueueCoupon"}
"""Its reply confirms a place in a queue, which is in Redis. The ticket's coupon comes later."""
WRITES: Final = [
    method.name
    for method in METHODS
    if (
        "request_id" in method.input_type.fields_by_name
        and method.name not in OF_NO_SAGA | OF_REDIS
    )
    or method.name == "SetCartItem"
]
REFUSALS: Final = {"DATABASE_UNAVAILABLE", "CONFLICT_RETRIES_EXHAUSTED"}
"""The second for a row that is locked. Both ask for a repetition."""


@pytest.fixture(autouse=True)
def short_waits(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set after the services, which start with long limits."""
    monkeypatch.setattr("common.db.transactions.COMMIT_WAIT_S", 0.3)
    monkeypatch.setattr("payment_service.use_cases.resolver.STORE_TRIES_MAX", 1)


async def reply(services: Services, request: Any) -> Any:
    """The response, or None if the call has to be repeated."""
    try:
        return await services.call(request)
    except grpc.aio.AioRpcError as error:
        assert Status.of(error).reason in REFUSALS, error
        return None


async def replies(services: Services, requests: Iterable[Any]) -> list[Any]:
    return await asyncio.gather(*(reply(services, request) for request in requests))


async def restart(services: Services, databases: StackDatabases) -> None:
    """Restart the primary: COMMITs that waited are visible then, and on no standby."""
    for connection in services.databases.values():
        connection.terminate()
    databases.server.stop()
    databases.server.start()
    for name, urls in databases.urls.items():
        await services.connect(name, urls.owner)


async def test_no_write_is_confirmed_before_the_standby_has_it(
    services: Services, standby: Standby, stack_databases: StackDatabases
) -> None:
    """After callers hang up, at the time limit, repeated, and after the primary has restarted."""
    requests = [
        services.valid(name, **({"expected_version": None} if "Cart" in name else {}))
        for name in WRITES
    ]
    none = [None] * len(requests)
    async with standby.away():
        async with services.unchanged():
            calls = [asyncio.create_task(reply(services, request)) for request in requests]
            await standby.until_waiting(len(calls) // 2)
            for call in calls[::2]:
                call.cancel()
            assert await asyncio.gather(*calls[1::2]) == none[1::2]
            assert await replies(services, requests) == none
        await restart(services, stack_databases)
        for _ in range(2):
            assert await replies(services, requests) == none
    await until(lambda: replies(services, requests), confirmed)
    async with services.unchanged():
        again = await until(lambda: replies(services, requests), confirmed)
    assert [name for name, one in zip(WRITES, again, strict=True) if not replayed(one)] == []


def confirmed(responses: list[Any]) -> bool:
    return None not in responses


def replayed(response: Any) -> bool:
    """Carts have no request_id: setting a line again changes nothing."""
    return "replayed" not in response.DESCRIPTOR.fields_by_name or response.replayed
