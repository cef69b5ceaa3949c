"""A replica killed while the gateway has its call."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc

from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.payment.v1 import payment_pb2 as pb
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.support.patience import LONG_S
from tests.support.payments import (
    confirm,
    key_of,
    only_payment,
    payment_replicas,
    until_at_gateway,
    until_state,
)
from tests.support.refusals import outcome
from tests.support.replicas import healthy


async def test_what_a_killed_replica_had_charged_is_found_by_another(
    payment_database: ServiceUrls,
    redis_url: str,
    gateway: GatewaySimulator,
    postgres_server: PostgresServer,
) -> None:
    key = key_of("timeout_after_charge_")
    async with (
        payment_replicas(1, payment_database, gateway, redis_url) as (survivor,),
        process_of(payment_database, redis_url, gateway) as process,
        grpc.aio.insecure_channel(await address_of(process)) as opened,
    ):
        call = PaymentServiceStub(opened).ConfirmPayment(confirm(key))
        waiting = asyncio.ensure_future(outcome(call))
        await until_at_gateway(gateway, key, "DONE")
        process.kill()
        pending = await only_payment(survivor)
        assert pending.state == pb.Payment.STATE_PENDING
        assert await waiting == ""
        # As if its lease had run out.
        postgres_server.run_sql(
            "UPDATE payments SET due_time = now()",
            database=payment_database.owner.rpartition("/")[2],
        )
        await until_state(survivor, pending.payment_id, pb.Payment.STATE_CONFIRMED)
        assert (await survivor.ConfirmPayment(confirm(key))).replayed
    assert gateway.charges()[key]["confirmCalls"] == 1


@asynccontextmanager
async def process_of(
    database: ServiceUrls, redis_url: str, simulator: GatewaySimulator, *, lease_s: float = 600.0
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A replica in a process of its own."""
    settings = {
        "DATABASE_URL": database.runtime,
        "REDIS_URL": redis_url,
        "BIND": "127.0.0.1:0",
        "GATEWAY_URL": simulator.url,
        "GATEWAY_SECRET_KEY": simulator.secret_key,
        "GATEWAY_TIMEOUT_S": "60",
        "LEASE_S": str(lease_s),
        "LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "payment_service",
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {f"TALLY_PAYMENT_{name}": value for name, value in settings.items()},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def address_of(process: asyncio.subprocess.Process) -> str:
    """Where the process listens, as it logs it, when it is ready."""
    assert process.stderr is not None
    async with asyncio.timeout(LONG_S):
        async for line in process.stderr:
            told = json.loads(line)
            if told["event"] == "listening":
                address = f"127.0.0.1:{told['port']}"
                await healthy(address)
                return address
    raise AssertionError("the replica did not start")
