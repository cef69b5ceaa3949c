"""What is stuck delays itself and nothing else; what runs is finished before a replica stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from payment_service.locking import places
from payment_service.model import ConfirmPayment
from tally.payment.v1 import payment_pb2 as pb
from tests.support.patience import LONG_S
from tests.support.payments import (
    cancel,
    confirm,
    held,
    key_of,
    only_payment,
    payment_replicas,
)


@asynccontextmanager
async def transaction(urls: ServiceUrls) -> AsyncIterator[AsyncConnection]:
    """A transaction of somebody else's that stays open for the block."""
    engine = create_async_engine(make_url(urls.runtime).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as connection:
        yield connection
        await connection.rollback()
    await engine.dispose()


async def others(payment: Any, count: int = 30) -> None:
    """Payments of other users go through, and are cancelled."""
    await asyncio.gather(
        *(payment.ConfirmPayment(confirm(key_of(), user_id=f"u{n}")) for n in range(count))
    )
    await asyncio.gather(*(payment.CancelPayment(cancel(user_id=f"u{n}")) for n in range(count)))


async def test_a_held_row_delays_only_its_own_commands(
    payment: Any, payment_database: ServiceUrls
) -> None:
    key = key_of()
    await payment.ConfirmPayment(confirm(key))
    async with transaction(payment_database) as holding:
        await holding.execute(
            sa.text("SELECT FROM payments WHERE payment_key = :key FOR UPDATE"), {"key": key}
        )
        blocked = asyncio.ensure_future(payment.CancelPayment(cancel()))
        await others(payment)
        assert not blocked.done()
    assert (await blocked).payment.state == pb.Payment.STATE_CANCELLED


async def test_a_held_place_delays_only_its_own_commands(
    payment: Any, payment_database: ServiceUrls
) -> None:
    key = key_of()
    claim = ConfirmPayment("order-1", "ann", Money("KRW", 15_000), key, "c1", "")
    async with transaction(payment_database) as holding:
        for place in places(claim):
            await holding.execute(sa.text("SELECT pg_advisory_xact_lock(:place)"), {"place": place})
        blocked = asyncio.ensure_future(payment.ConfirmPayment(confirm(key)))
        await others(payment)
        assert not blocked.done()
    assert (await blocked).payment.state == pb.Payment.STATE_CONFIRMED


async def test_a_key_inserted_and_not_committed_delays_only_its_own_commands(
    payment: Any, payment_database: ServiceUrls
) -> None:
    key = key_of()
    async with transaction(payment_database) as holding:
        await holding.execute(
            sa.text(
                "INSERT INTO payments VALUES (gen_random_uuid(), :key, 'bob', 'c1', 'order-1',"
                " 'KRW', 1, 'toss', 'PENDING', NULL, NULL, NULL, NULL, NULL, now(), 0, 1,"
                " now(), now())"
            ),
            {"key": key},
        )
        blocked = asyncio.ensure_future(payment.ConfirmPayment(confirm(key)))
        await others(payment)
        assert not blocked.done()
    assert (await blocked).payment.state == pb.Payment.STATE_CONFIRMED


async def test_a_replica_that_stops_finishes_what_is_at_the_gateway(
    payment_database: ServiceUrls, redis_url: str, gateway: GatewaySimulator
) -> None:
    key = key_of()
    with held(key) as let_go:
        async with payment_replicas(
            1, payment_database, gateway, redis_url, grace_s=LONG_S, lease_s=600
        ) as (one,):
            call = asyncio.ensure_future(one.ConfirmPayment(confirm(key)))
            await only_payment(one)
            call.cancel()
            await asyncio.wait({call})
            asyncio.get_running_loop().call_later(0.3, let_go.set)
    async with payment_replicas(1, payment_database, gateway, redis_url, resolve_interval_s=60) as (
        fresh,
    ):
        # Its lease would last ten minutes: nobody but the stopping replica can have stored this.
        assert (await only_payment(fresh)).state == pb.Payment.STATE_CONFIRMED
        assert (await fresh.ConfirmPayment(confirm(key))).replayed
    assert gateway.charges()[key]["confirmCalls"] == 1
