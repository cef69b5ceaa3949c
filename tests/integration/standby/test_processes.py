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

KILLED: Final = "balance"


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


async def write(service: str, port: int) -> grpc.StatusCode:
    """The code with which the service refuses its write."""
    request = WRITES[service][1]()
    method = METHODS_BY_NAME[request.DESCRIPTOR.name.removesuffix("Request")]
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(path)(request.SerializeToString(), timeout=60)
    return refused.value.code()


@pytest.mark.timeout(300)
async def test_replicas_that_end_leave_their_commits_to_the_standby(
    standby: Standby, stack_databases: StackDatabases
) -> None:
    """One of each service by SIGTERM, another by SIGKILL, which no service can notice.

    Nothing is visible while the standby is away, and all of it afterwards.
    """

    async def rows() -> list[int]:
        tables = {service: table for service, (table, _) in WRITES.items()}
        counts = (
            stack_databases.sql(service, f"SELECT count(*) FROM {table}")
            for service, table in tables.items()
        )
        return list(map(int, await asyncio.gather(*counts)))

    async with AsyncExitStack() as stack:
        running: list[Service] = []
        ports: list[int] = []
        services = [*WRITES, KILLED]
        for service in services:
            given = environment(service, stack_databases.urls[service].runtime)
            entering = stack.enter_async_context(process(f"{service}_service", **given))
            running.append(await entering)
        for replica in running:
            ports.append((await replica.line("listening"))["port"])
            await replica.line("ready")
        async with standby.away():
            codes = await asyncio.gather(*map(write, services, ports))
            assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
            assert await rows() == [0] * len(WRITES)
            running[-1].process.kill()
            ended = await asyncio.gather(*(replica.stop() for replica in running[:-1]))
            assert [status for status, _ in ended] == [0] * len(WRITES)
            assert await rows() == [0] * len(WRITES)
        assert await rows() == [services.count(service) for service in WRITES]
