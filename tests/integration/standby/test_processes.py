"""Replicas that end while their COMMITs wait for a standby leave them waiting."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
import pytest

from tests.integration.contract.valid_requests import fresh
from tests.integration.start.process import Service, process
from tests.integration.start.services import environment
from tests.support.balances import charge
from tests.support.contract import METHODS_BY_NAME
from tests.support.coupons import campaign
from tests.support.databases import StackDatabases
from tests.support.orders import create_product
from tests.support.payments import confirm
from tests.support.standby import Standby

WRITES: Final[dict[str, tuple[str, Any]]] = {
    "balance": ("ledger_entries", lambda: charge(fresh(), 100, fresh())),
    "coupon": ("campaigns", lambda: campaign(fresh())),
    "order": ("products", lambda: create_product(fresh(), 1)),
    "payment": ("payments", lambda: confirm(fresh(), fresh())),
}
"""A write of each service, and a table in which it adds a row."""
HEARTBEATS: Final = 2
"""The order and the payment service write one, which waits as well."""


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


async def write(service: str, port: int) -> None:
    """Send the service's write and wait until the replica ends."""
    request = WRITES[service][1]()
    method = METHODS_BY_NAME[request.DESCRIPTOR.name.removesuffix("Request")]
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(path)(request.SerializeToString(), timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_replicas_that_end_leave_their_commits_to_the_standby(
    standby: Standby, stack_databases: StackDatabases
) -> None:
    """By SIGTERM and by SIGKILL: nothing is visible while the standby is away, all is afterwards."""

    async def rows(service: str) -> int:
        return int(await stack_databases.sql(service, f"SELECT count(*) FROM {WRITES[service][0]}"))

    async with AsyncExitStack() as stack:
        running: list[tuple[str, Service]] = []
        for service in (*WRITES, *WRITES):
            given = environment(service, stack_databases.urls[service].runtime)
            entering = stack.enter_async_context(process(f"{service}_service", **given))
            running.append((service, await entering))
        ports = [(await one.line("listening"))["port"] for _, one in running]
        for _, one in running:
            await one.line("ready")
        async with standby.away():
            async with asyncio.TaskGroup() as calls:
                for (service, _), port in zip(running, ports, strict=True):
                    calls.create_task(write(service, port))
                await standby.until_waiting(len(running) + HEARTBEATS)
                terminated, killed = running[: len(WRITES)], running[len(WRITES) :]
                for _, one in killed:
                    one.process.kill()
                ended = await asyncio.gather(*(one.stop() for _, one in terminated))
            assert [status for status, _ in ended] == [0] * len(terminated)
            assert [await rows(service) for service in WRITES] == [0] * len(WRITES)
        assert [await rows(service) for service in WRITES] == [2] * len(WRITES)
