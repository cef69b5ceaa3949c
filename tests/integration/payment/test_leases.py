"""Leases: a live replica keeps its payment however long the gateway takes, a dead one soon not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
import sqlalchemy as sa

from common.db import bulkheads
from common.db.database import Database
from common.db.idempotency import IdempotencyStore
from common.ids import new_id
from common.locking.marks import NoMarks
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from payment_service.gateway.outcomes import Charge, Confirmed
from payment_service.model.payment import PaymentState
from payment_service.model.payment_command import ConfirmPayment
from payment_service.store import lease
from payment_service.tables import answers, payments
from payment_service.use_cases.payment import Payments
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    confirm,
    held_at_gateway,
    key_of,
    only_payment,
    payment_replicas,
    until,
)
from tests.support.refusals import outcome

LEASE_S = 60.0
LEASE = timedelta(seconds=LEASE_S)


class SlowGateway:
    """A gateway that confirms when ``release`` is set."""

    name = "toss"
    refuses_confirms = False

    def __init__(self) -> None:
        self.called, self.release = asyncio.Event(), asyncio.Event()

    async def confirm(self, charge: Charge) -> Confirmed:
        self.called.set()
        await self.release.wait()
        return Confirmed("transaction", charge.amount)


class Replica:
    """The use cases on a database, with one payment at the gateway."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.gateway = SlowGateway()
        self.payments = Payments(
            database,
            cast(Any, self.gateway),
            NoMarks(),
            IdempotencyStore(answers),
            lease_s=LEASE_S,
            confirm_window_s=900,
            resolve_concurrency=4,
        )
        command = ConfirmPayment("order-1", "ann", Money("KRW", 1), key_of(), "c1", new_id())
        self.calling = asyncio.create_task(self.payments.confirm(command))

    async def row(self) -> Any:
        async with self.database.reads.connect() as connection:
            left = payments.c.due_time - sa.func.clock_timestamp()
            return (await connection.execute(sa.select(payments, left.label("left")))).one()

    async def let_time_pass(self, seconds: float) -> None:
        earlier = payments.c.due_time - timedelta(seconds=seconds)
        async with self.database.begin() as connection:
            await connection.execute(sa.update(payments).values(due_time=earlier))

    async def result(self) -> PaymentState:
        self.gateway.release.set()
        posted = await self.calling
        assert posted.value is not None
        return posted.value.state


@pytest.fixture
async def replica(sessions: Database) -> AsyncIterator[Replica]:
    made = Replica(sessions)
    await made.gateway.called.wait()
    yield made
    made.gateway.release.set()
    await asyncio.wait({made.calling})
    await made.payments.close(LEASE_S)


async def test_a_lease_is_renewed_while_the_gateway_is_called(replica: Replica) -> None:
    await replica.let_time_pass(LEASE_S)
    before = await replica.row()
    assert before.left <= timedelta(0)
    assert await replica.payments.resolver.renew_leases() == 1
    after = await replica.row()
    assert after.left > LEASE / 2
    assert (after.holder, after.version, after.state) == (before.holder, before.version, "PENDING")
    assert await replica.result() is PaymentState.CONFIRMED
    assert (await replica.row()).due_time is None
    assert await replica.payments.resolver.renew_leases() == 0


async def test_a_lease_that_another_replica_acquired_is_not_renewed(replica: Replica) -> None:
    await replica.let_time_pass(LEASE_S)
    async with replica.database.begin() as connection:
        (acquired,) = await lease.acquire_due(connection, holder=new_id(), lease=LEASE, size=1)
    await replica.let_time_pass(LEASE_S / 2)
    assert await replica.payments.resolver.renew_leases() == 0
    row = await replica.row()
    assert row.holder == acquired.holder
    assert row.left < LEASE / 2
    # The first replica's certain outcome counts all the same.
    assert await replica.result() is PaymentState.CONFIRMED


async def test_a_renewal_does_not_wait_for_a_locked_row(replica: Replica) -> None:
    async with replica.database.begin() as connection:
        await connection.execute(sa.select(payments).with_for_update())
        assert await replica.payments.resolver.renew_leases() == 0
    assert await replica.payments.resolver.renew_leases() == 1


async def test_leases_are_renewed_while_sweeps_have_every_place_of_jobs(replica: Replica) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(bulkheads.JOBS):
            await stack.enter_async_context(replica.database.begin("sweep"))
        assert await replica.payments.resolver.renew_leases() == 1


async def test_a_serving_replica_renews_its_leases(
    payment_database: ServiceUrls, sessions: Database, gateway: GatewaySimulator
) -> None:
    key = key_of()

    async def due_time() -> datetime:
        async with sessions.reads.connect() as connection:
            due: datetime = (await connection.execute(sa.select(payments.c.due_time))).scalar_one()
            return due

    async def renewed() -> bool:
        return await due_time() > first

    # No sweep: nothing else could set the time anew.
    with held_at_gateway(key) as release:
        async with payment_replicas(
            1, payment_database, gateway, "", lease_s=1, resolve_interval_s=60
        ) as (one,):
            calling = asyncio.ensure_future(outcome(one.ConfirmPayment(confirm(key))))
            await only_payment(one)
            first = await due_time()
            await until(renewed)
            release.set()
            assert (await calling).payment.state == pb.Payment.STATE_CONFIRMED
