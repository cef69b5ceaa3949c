"""The daily question at the gateway about payments that are settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from common.db.engines import Database
from common.db.idempotency import IdempotencyStore
from common.locking.marks import NoMarks
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.gateway.outcomes import Unknown
from payment_service.gateway.toss import TossGateway, TossOptions
from payment_service.tables import answers, payments
from payment_service.use_cases.payment import Payments
from payment_service.use_cases.recheck import Recheck
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import cancel, charge, confirm, key_of, only_payment, unknown_payment
from tests.support.refusals import refused

pytestmark = pytest.mark.parametrize("redis_url", ["no-redis"], indirect=True)
DAYS = 3
GOING_ON = asyncio.Event()


@pytest.fixture
async def recheck(sessions: Database, gateway: GatewaySimulator) -> AsyncIterator[Recheck]:
    toss = TossGateway(TossOptions(gateway.url, SecretStr(gateway.secret_key)))
    made = Payments(
        sessions,
        toss,
        NoMarks(),
        IdempotencyStore(answers),
        lease_s=60,
        confirm_window_s=900,
        resolve_concurrency=1,
    )
    yield Recheck(sessions, made.resolver, days=DAYS)
    await made.close(60)
    await toss.aclose()


async def age(sessions: Database, **days: float) -> None:
    """Move times of all payments into the past."""
    earlier = {name: payments.c[name] - timedelta(days=number) for name, number in days.items()}
    async with sessions.begin() as connection:
        await connection.execute(sa.update(payments).values(earlier))


async def test_a_refund_in_the_dashboard_is_seen_after_a_day(
    payment: Any, sessions: Database, gateway: GatewaySimulator, recheck: Recheck
) -> None:
    keys = [key_of(), key_of()]
    for number, key in enumerate(keys):
        await payment.ConfirmPayment(confirm(key, f"c{number}", user_id=f"u{number}"))
    gateway.refund_in_dashboard(keys[0], 6_000)
    gateway.refund_in_dashboard(keys[1])
    assert await recheck.run(GOING_ON) == 0
    await age(sessions, create_time=1.01)
    assert await recheck.run(GOING_ON) == 2
    part = await only_payment(payment, user_id="u0")
    assert (part.state, part.refunded.amount_minor) == (pb.Payment.STATE_CONFIRMED, 6_000)
    assert part.refunded_outside == part.refunded
    whole = await only_payment(payment, user_id="u1")
    assert whole.state == pb.Payment.STATE_CANCELLED
    assert whole.refunded_outside == whole.refunded == whole.amount
    assert await recheck.run(GOING_ON) == 0


async def test_a_payment_is_checked_once_a_day_until_it_is_old(
    payment: Any, sessions: Database, gateway: GatewaySimulator, recheck: Recheck
) -> None:
    await payment.ConfirmPayment(confirm(key_of()))
    checks = []
    await age(sessions, create_time=1.01)
    for _ in range(DAYS + 2):
        checks.append(await recheck.run(GOING_ON))
        async with sessions.begin() as connection:
            day = timedelta(days=1)
            earlier = sa.case(
                (sa.func.isfinite(payments.c.checked_time), payments.c.checked_time - day),
                else_=payments.c.checked_time,
            )
            await connection.execute(
                sa.update(payments).values(
                    create_time=payments.c.create_time - day, checked_time=earlier
                )
            )
    assert checks == [1] * DAYS + [0] * 2


async def test_two_replicas_share_the_checks(
    payment: Any, sessions: Database, gateway: GatewaySimulator, recheck: Recheck
) -> None:
    keys = [key_of() for _ in range(10)]
    for number, key in enumerate(keys):
        await payment.ConfirmPayment(confirm(key, f"c{number}"))
    await age(sessions, create_time=1.01)
    found = await asyncio.gather(*(recheck.run(GOING_ON) for _ in range(3)))
    assert sum(found) == len(keys)


async def test_a_check_without_an_answer_is_repeated(
    payment: Any, sessions: Database, recheck: Recheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await payment.ConfirmPayment(confirm(key_of(), f"c{number}"))
    await age(sessions, create_time=1.01)
    asked = AsyncMock(return_value=Unknown("lost"))
    with monkeypatch.context() as patch:
        patch.setattr(TossGateway, "find", asked)
        assert await recheck.run(GOING_ON) == 0
    # The others were not asked about, and all of them are due again after some minutes.
    assert asked.await_count == 1
    assert await recheck.run(GOING_ON) == 0
    await age(sessions, checked_time=0.01)
    assert await recheck.run(GOING_ON) == 3


async def test_a_charge_of_a_payment_not_charged_is_given_back(
    payment: Any, sessions: Database, gateway: GatewaySimulator, recheck: Recheck
) -> None:
    key = key_of()
    payment_id = await unknown_payment(sessions, key)
    await age(sessions, confirm_time=1)
    ended = (await payment.CancelPayment(cancel())).payment
    assert ended.failure_code == "NOT_CHARGED"
    await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    await age(sessions, create_time=1.01)
    assert await recheck.run(GOING_ON) == 1
    given_back = (await payment.CancelPayment(cancel("c1", "x2"))).payment
    assert given_back.state == pb.Payment.STATE_CANCELLED
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"
    with refused("PAYMENT_CANCELLED"):
        await payment.ConfirmPayment(confirm(key))
