"""Payments that a sweep cannot take or read, and those behind them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from common.db.database import Database
from common.errors import DatabaseUnavailable
from common.ids import new_id
from deploy.local.postgres_roles import ServiceUrls
from payment_service.gateway.outcomes import GatewayOutcome
from payment_service.model.confirmation import Confirmation
from payment_service.store import lease
from payment_service.tables import payments
from payment_service.use_cases.recheck import Recheck
from payment_service.use_cases.resolver import Resolver
from tally.payment.v1 import payment_pb2 as pb
from tests.integration.payment.test_recheck import age, recheck, resolver
from tests.support.databases import open_transaction
from tests.support.payments import confirm, insert_claim, key_of

__all__ = ["recheck", "resolver"]

without_redis = pytest.mark.parametrize("redis_url", ["no-redis"], indirect=True)
LEASE = timedelta(seconds=60)
HELD = sa.text("SELECT FROM payments WHERE payment_id = ANY(:ids) FOR UPDATE")


async def acquire(sessions: Database, size: int) -> list[str]:
    async with sessions.begin() as connection:
        found = await lease.acquire_due(connection, holder=new_id(), lease=LEASE, size=size)
    return [each.payment.payment_id for each in found]


async def open_payments(sessions: Database, count: int) -> list[str]:
    """Payments with an unknown outcome, the longest due first."""
    made = []
    for number in range(count):
        async with sessions.begin() as connection:
            payment_id = await insert_claim(connection, key_of(), user_id=f"u{number}")
        due = sa.func.now() - timedelta(minutes=count - number)
        async with sessions.begin() as connection:
            this = sa.update(payments).where(payments.c.payment_id == payment_id)
            await connection.execute(this.values(state="UNKNOWN", holder=None, due_time=due))
        made.append(payment_id)
    return made


async def damage(sessions: Database, databases: Any, payment_id: str) -> None:
    """Write a state that this release does not know."""
    # In a thread: the replicas' own transactions have to end first.
    await asyncio.to_thread(
        databases.server.run_sql,
        "ALTER TABLE payments DROP CONSTRAINT payments_outcome;"
        "ALTER TABLE payments DROP CONSTRAINT payments_due_while_open;"
        f"UPDATE payments SET state = 'LATER' WHERE payment_id = '{payment_id}'",
        database=sessions.url.database,
    )


async def test_due_payments_behind_held_rows_are_acquired(sessions: Database) -> None:
    made = await open_payments(sessions, 5)
    async with sessions.transactions.begin(sessions.lanes) as holding:
        await holding.execute(HELD, {"ids": made[:3]})
        assert await acquire(sessions, 2) == made[3:]


async def test_an_unreadable_payment_is_postponed_and_stops_no_other(
    sessions: Database, databases: Any
) -> None:
    broken, sound = await open_payments(sessions, 2)
    await damage(sessions, databases, broken)
    left = sa.select(payments.c.due_time - sa.func.clock_timestamp(), payments.c.holder).where(
        payments.c.payment_id == broken
    )
    pauses = []
    with capture_logs() as logged:
        assert await acquire(sessions, 2) == [sound]
        for _ in range(7):
            async with sessions.reads.connect() as connection:
                pause, holder = (await connection.execute(left)).one()
            assert holder is None
            pauses.append(round(pause.total_seconds(), -1))
            async with sessions.begin() as connection:
                this = sa.update(payments).where(payments.c.payment_id == broken)
                await connection.execute(this.values(due_time=sa.func.now()))
            assert await acquire(sessions, 2) == []
    assert pauses == sorted(pauses)
    assert pauses[-1] == 600 > pauses[0]
    assert [line["id"] for line in logged if line["event"] == "row_not_readable"] == [broken]


@without_redis
async def test_one_unreadable_payment_hides_no_other(
    payment: Any, sessions: Database, databases: Any
) -> None:
    """Of a confirmation it is UNKNOWN: the payment exists, and nothing may count on its outcome."""
    made = [
        (await payment.ConfirmPayment(confirm(key_of(), f"c{n}"))).payment.payment_id
        for n in range(4)
    ]
    await damage(sessions, databases, made[2])
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListPaymentsRequest(user_id="ann", page_size=2, page_token=token)
        page = await payment.ListPayments(request)
        found += [each.payment_id for each in page.payments]
        if not (token := page.next_page_token):
            break
    assert found == [made[n] for n in (3, 1, 0)]
    asked = pb.GetConfirmationsRequest(confirm_request_ids=[f"c{n}" for n in range(5)])
    states = [each.payment.state for each in (await payment.GetConfirmations(asked)).confirmations]
    confirmed, unknown = pb.Payment.STATE_CONFIRMED, pb.Payment.STATE_UNKNOWN
    assert states == [confirmed, confirmed, unknown, confirmed, 0]


@without_redis
async def test_checks_go_past_payments_that_cannot_be_checked(  # noqa: PLR0917 - fixtures
    payment: Any,
    sessions: Database,
    databases: Any,
    recheck: Recheck,
    resolver: Resolver,
    payment_database: ServiceUrls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is unreadable, the row of another is held when its check is noted, one is too slow."""
    made = [
        (await payment.ConfirmPayment(confirm(key_of(), user_id=f"u{n}"))).payment.payment_id
        for n in range(10)
    ]
    await damage(sessions, databases, made[0])
    await age(sessions, check_time=2)
    look_up = resolver.look_up
    async with AsyncExitStack() as stack:

        async def then_hold(confirmation: Confirmation) -> GatewayOutcome:
            found = await look_up(confirmation)
            if confirmation.payment.payment_id == made[2]:
                raise DatabaseUnavailable
            if confirmation.payment.payment_id == made[1]:
                lock = f"SELECT FROM payments WHERE payment_id = '{made[1]}' FOR UPDATE"
                await stack.enter_async_context(open_transaction(payment_database, lock))
            return found

        monkeypatch.setattr(resolver, "look_up", then_hold)
        assert await recheck.run(asyncio.Event()) == len(made) - 1
    async with sessions.reads.connect() as connection:
        soon = payments.c.check_time < sa.func.now() + timedelta(hours=1)
        left = (await connection.execute(sa.select(payments.c.payment_id).where(soon))).scalars()
        assert set(left) == set(made[:3]), "these are due again after some minutes"
