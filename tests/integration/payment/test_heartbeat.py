"""Whose a payment at the gateway is: a living replica's however long it takes, a dead one's soon
another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
import sqlalchemy as sa

from common.db.engines import open_engines
from common.ids import new_id
from common.locking.marks import NoMarks
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from payment_service import store
from payment_service.gateway import Charge, Confirmed
from payment_service.model import ConfirmPayment, State
from payment_service.tables import payments
from payment_service.use_cases import Payments
from tally.payment.v1 import payment_pb2 as pb
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.integration.payment.test_crash import address_of, process_of
from tests.support.payments import (
    confirm,
    held,
    key_of,
    only_payment,
    payment_replicas,
    until,
    until_at_gateway,
    until_state,
)
from tests.support.refusals import outcome

LEASE_S = 60.0


class Slow:
    """A gateway that answers one confirmation, when it is told to."""

    name = "toss"

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def confirm(self, charge: Charge) -> Confirmed:
        self.asked.set()
        await self.go.wait()
        return Confirmed("transaction", charge.amount)


class Replica:
    """The use cases over a database of their own, with one payment at the gateway."""

    def __init__(self, database: ServiceUrls) -> None:
        self.database = open_engines(database.runtime, application_name="test", pool_size=12)
        self.gateway = Slow()
        self.payments = Payments(
            self.database,
            cast(Any, self.gateway),
            NoMarks(),
            lease_s=LEASE_S,
            resolve_concurrency=4,
        )
        command = ConfirmPayment("order-1", "ann", Money("KRW", 1), key_of(), "c1", new_id())
        self.calling = asyncio.create_task(self.payments.confirm(command))

    async def row(self) -> Any:
        async with self.database.reads.connect() as connection:
            left = payments.c.due_time - sa.func.clock_timestamp()
            return (await connection.execute(sa.select(payments, left.label("left")))).one()

    async def pass_time(self, seconds: float) -> None:
        passed = payments.c.due_time - timedelta(seconds=seconds)
        async with self.database.begin() as connection:
            await connection.execute(sa.update(payments).values(due_time=passed))

    async def answered(self) -> State:
        self.gateway.go.set()
        posted = await self.calling
        assert posted.payment is not None
        return posted.payment.state


@pytest.fixture
async def replica(payment_database: ServiceUrls) -> AsyncIterator[Replica]:
    made = Replica(payment_database)
    await made.gateway.asked.wait()
    yield made
    made.gateway.go.set()
    await asyncio.wait({made.calling})
    await made.payments.close(LEASE_S)
    await made.database.close()


async def test_a_lease_is_renewed_for_as_long_as_the_gateway_takes(replica: Replica) -> None:
    await replica.pass_time(LEASE_S)
    before = await replica.row()
    assert before.left <= timedelta(0)
    assert await replica.payments.resolver.beat() == 1
    after = await replica.row()
    assert after.left > timedelta(seconds=LEASE_S / 2)
    assert (after.holder, after.version, after.state) == (before.holder, before.version, "PENDING")
    assert await replica.answered() is State.CONFIRMED
    assert (await replica.row()).due_time is None
    assert await replica.payments.resolver.beat() == 0


async def test_what_another_has_taken_up_is_not_renewed(replica: Replica) -> None:
    await replica.pass_time(LEASE_S)
    async with replica.database.begin() as connection:
        lease = timedelta(seconds=LEASE_S)
        (taken,) = await store.take(connection, holder=new_id(), lease=lease, size=1)
    await replica.pass_time(LEASE_S / 2)
    assert await replica.payments.resolver.beat() == 0
    row = await replica.row()
    assert row.holder == taken.holder
    assert row.left < timedelta(seconds=LEASE_S / 2)
    # What the first one hears for sure counts all the same.
    assert await replica.answered() is State.CONFIRMED


async def test_a_row_that_is_locked_is_not_waited_for(replica: Replica) -> None:
    async with replica.database.begin() as connection:
        await connection.execute(sa.select(payments).with_for_update())
        assert await replica.payments.resolver.beat() == 0
    assert await replica.payments.resolver.beat() == 1


async def test_a_serving_replica_beats(
    payment_database: ServiceUrls, gateway: GatewaySimulator
) -> None:
    key = key_of()
    database = open_engines(payment_database.runtime, application_name="test", pool_size=4)

    async def due() -> Any:
        async with database.reads.connect() as connection:
            return (await connection.execute(sa.select(payments.c.due_time))).scalar()

    async def renewed() -> bool:
        return bool(await due() > first)

    with held(key) as let_go:
        # No sweep: nothing else could set the time anew.
        async with payment_replicas(
            1, payment_database, gateway, "", lease_s=1, resolve_interval_s=60
        ) as (one,):
            calling = asyncio.ensure_future(outcome(one.ConfirmPayment(confirm(key))))
            await only_payment(one)
            first = await due()
            await until(renewed)
            let_go.set()
            assert (await calling).payment.state == pb.Payment.STATE_CONFIRMED
    await database.close()


async def test_what_a_killed_replica_was_at_is_taken_up_when_its_lease_is_over(
    payment_database: ServiceUrls, gateway: GatewaySimulator
) -> None:
    key = key_of("timeout_after_charge_")
    async with (
        payment_replicas(1, payment_database, gateway, "") as (survivor,),
        process_of(payment_database, "", gateway, lease_s=1.0) as process,
        grpc.aio.insecure_channel(await address_of(process)) as opened,
    ):
        calling = asyncio.ensure_future(
            outcome(PaymentServiceStub(opened).ConfirmPayment(confirm(key)))
        )
        await until_at_gateway(gateway, key, "DONE")
        process.kill()
        assert await calling == ""
        payment_id = (await only_payment(survivor)).payment_id
        await until_state(survivor, payment_id, pb.Payment.STATE_CONFIRMED)
        assert (await survivor.ConfirmPayment(confirm(key))).replayed
    assert (await asyncio.to_thread(gateway.charges))[key]["confirmCalls"] == 1
