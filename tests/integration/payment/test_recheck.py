"""The questions at the gateway about payments that are settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from common.db.database import Database
from common.db.idempotency import IdempotencyStore
from common.locking.marks import NoMarks
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.gateway.outcomes import Charge, FindOutcome, NotFound, Unknown
from payment_service.gateway.toss import TossGateway, TossOptions
from payment_service.tables import answers, payments
from payment_service.use_cases.payment import Payments
from payment_service.use_cases.recheck import Recheck
from payment_service.use_cases.resolver import Resolver
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    cancel,
    charge,
    confirm,
    key_of,
    only_payment,
    resolution,
    unknown_payment,
    until_state,
)
from tests.support.refusals import refused

pytestmark = pytest.mark.parametrize("redis_url", ["no-redis"], indirect=True)
DAYS = 3
WINDOW_S = 900
MINUTE = 1 / 1440
GOING_ON = asyncio.Event()


SLOTS = 4


@pytest.fixture
async def resolver(sessions: Database, gateway: GatewaySimulator) -> AsyncIterator[Resolver]:
    toss = TossGateway(TossOptions(gateway.url, SecretStr(gateway.secret_key)))
    made = Payments(
        sessions,
        toss,
        NoMarks(),
        IdempotencyStore(answers),
        lease_s=60,
        confirm_window_s=WINDOW_S,
        resolve_concurrency=SLOTS,
    )
    yield made.resolver
    await made.close(60)
    await toss.aclose()


@pytest.fixture
def recheck(sessions: Database, resolver: Resolver) -> Recheck:
    return Recheck(sessions, resolver, days=DAYS, confirm_window_s=WINDOW_S)


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
    await age(sessions, check_time=1.01, update_time=1.01)
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
    await age(sessions, check_time=1.01, update_time=1.01)
    for _ in range(DAYS + 2):
        checks.append(await recheck.run(GOING_ON))
        await age(sessions, check_time=1, update_time=1)
    assert checks == [1] * DAYS + [0] * 2


async def test_two_replicas_share_the_checks(
    payment: Any, sessions: Database, gateway: GatewaySimulator, recheck: Recheck
) -> None:
    keys = [key_of() for _ in range(10)]
    for number, key in enumerate(keys):
        await payment.ConfirmPayment(confirm(key, f"c{number}"))
    await age(sessions, check_time=1.01, update_time=1.01)
    found = await asyncio.gather(*(recheck.run(GOING_ON) for _ in range(3)))
    assert sum(found) == len(keys)


async def test_a_check_without_an_answer_is_repeated(
    payment: Any, sessions: Database, recheck: Recheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SLOTS + 2):
        await payment.ConfirmPayment(confirm(key_of(), f"c{number}"))
    await age(sessions, check_time=1.01, update_time=1.01)
    asked = AsyncMock(return_value=Unknown("lost"))
    with monkeypatch.context() as patch:
        patch.setattr(TossGateway, "find", asked)
        assert await recheck.run(GOING_ON) == 0
    # The others are not asked about; all of them are due again after some minutes.
    assert asked.await_count == SLOTS
    assert await recheck.run(GOING_ON) == 2
    await age(sessions, check_time=11 * MINUTE)
    assert await recheck.run(GOING_ON) == SLOTS


async def test_a_backlog_is_checked_in_one_run_some_at_once(
    payment: Any, sessions: Database, recheck: Recheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5 * SLOTS):
        await payment.ConfirmPayment(confirm(key_of(), f"c{number}"))
    await age(sessions, check_time=1.01)
    running = [0]
    find = TossGateway.find

    async def counted(gateway: TossGateway, charge: Charge) -> FindOutcome:
        running.append(running[-1] + 1)
        try:
            return await find(gateway, charge)
        finally:
            running.append(running[-1] - 1)

    monkeypatch.setattr(TossGateway, "find", counted)
    assert await recheck.run(GOING_ON) == 5 * SLOTS
    assert max(running) == SLOTS


@pytest.mark.parametrize("by_person", [True, False])
async def test_a_charge_of_a_payment_not_charged_is_given_back_soon(
    payment: Any, sessions: Database, gateway: GatewaySimulator, recheck: Recheck, by_person: bool
) -> None:
    key = key_of()
    payment_id = await unknown_payment(sessions, key)
    await age(sessions, create_time=30, confirm_time=0 if by_person else 1)
    if by_person:
        not_charged = pb.ResolvePaymentRequest.OUTCOME_NOT_CHARGED
        await payment.ResolvePayment(resolution(payment_id, not_charged))
    else:
        await payment.CancelPayment(cancel())
    assert (await only_payment(payment)).failure_code == "NOT_CHARGED"
    assert await recheck.run(GOING_ON) == 0
    # Each time it is asked after as long as it is settled already.
    for minutes in (1.1, 1.2, 2.4):
        await age(sessions, check_time=minutes * MINUTE, update_time=minutes * MINUTE)
        assert await recheck.run(GOING_ON) == 1
        assert await recheck.run(GOING_ON) == 0
    await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    await age(sessions, check_time=5 * MINUTE, update_time=5 * MINUTE)
    assert await recheck.run(GOING_ON) == 1
    await until_state(payment, payment_id, pb.Payment.STATE_CANCELLED)
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"
    with refused("PAYMENT_CANCELLED"):
        await payment.ConfirmPayment(confirm(key))


async def test_without_daily_checks_only_open_keys_are_asked_about(
    payment: Any, sessions: Database, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    recheck = Recheck(sessions, resolver, days=0, confirm_window_s=WINDOW_S)
    await payment.ConfirmPayment(confirm(key_of(), user_id="bob"))
    payment_id = await unknown_payment(sessions, key_of(), user_id="ann")
    not_charged = pb.ResolvePaymentRequest.OUTCOME_NOT_CHARGED
    await payment.ResolvePayment(resolution(payment_id, not_charged))
    asked = AsyncMock(return_value=NotFound())
    monkeypatch.setattr(TossGateway, "find", asked)
    counts = []
    for days in (8 * MINUTE, 8 * MINUTE, 1.1, 1.1):
        await age(sessions, check_time=days, update_time=days, confirm_time=days)
        await recheck.run(GOING_ON)
        counts.append(asked.await_count)
    # The second one is after the window.
    assert counts == [1, 2, 2, 2]
