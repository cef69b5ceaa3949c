"""A stored cancellation: from then on no confirm is sent, on whichever way a replica would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.database import Database
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.model.confirmation import Confirmation
from payment_service.tables import payments
from payment_service.use_cases.resolver import Resolver
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    Serve,
    cancel,
    charge,
    confirm,
    key_of,
    unknown_payment,
    until_state,
)
from tests.support.refusals import outcome, refused
from tests.support.time_limits import SOON_S

AWAY = {"GATEWAY_UNAVAILABLE", "PAYMENT_OUTCOME_UNKNOWN"}

IN_TIME = pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
"""The control sends the confirm without asking for permission, as the release before did."""


@contextmanager
def held_before_confirm(monkeypatch: pytest.MonkeyPatch, *, guarded: bool) -> Iterator[Any]:
    """Delay every confirm at the last moment before its permission until the event is set."""
    reached, release = asyncio.Event(), asyncio.Event()
    send = Resolver._confirm

    async def delayed(resolver: Resolver, confirmation: Confirmation, **_: float) -> Any:
        reached.set()
        await release.wait()
        # However soon the test goes on, the claim's own permission is over.
        return await send(resolver, confirmation)

    if not guarded:
        monkeypatch.setattr(Confirmation, "begin_confirm", lambda *_: True)
    monkeypatch.setattr(Resolver, "_confirm", delayed)
    try:
        yield reached, release
    finally:
        release.set()


@IN_TIME
async def test_a_first_confirm_that_has_not_begun_is_not_sent(
    payment: Any,
    elsewhere: Any,
    gateway: GatewaySimulator,
    monkeypatch: pytest.MonkeyPatch,
    *,
    guarded: bool,
) -> None:
    key = key_of()
    with held_before_confirm(monkeypatch, guarded=guarded) as (reached, release):
        confirming = asyncio.ensure_future(outcome(payment.ConfirmPayment(confirm(key))))
        await reached.wait()
        stored = await elsewhere.CancelPayment(cancel(record_only=True))
        assert stored.payment.HasField("cancel_request_time")
        release.set()
        assert await confirming == "PAYMENT_CANCELLED"
    assert (key in gateway.charges()) is not guarded
    if guarded:
        assert not (await elsewhere.CancelPayment(cancel())).HasField("payment")


@IN_TIME
async def test_a_repeated_confirm_that_has_not_begun_is_not_sent(
    payment: Any,
    elsewhere: Any,
    gateway: GatewaySimulator,
    sessions: Database,
    monkeypatch: pytest.MonkeyPatch,
    *,
    guarded: bool,
) -> None:
    """The gateway answers 500, nothing arrives, and the next confirm would be charged."""
    key = key_of("error_once_")
    with held_before_confirm(monkeypatch, guarded=guarded) as (reached, release):
        release.set()
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await payment.ConfirmPayment(confirm(key))
        release.clear()
        reached.clear()
        await reached.wait()
        unknown = (await elsewhere.CancelPayment(cancel(record_only=True))).payment
        await let_time_pass(sessions, seconds=900)
        release.set()
        assert unknown.state == pb.Payment.STATE_UNKNOWN
        ended = pb.Payment.STATE_DECLINED if guarded else pb.Payment.STATE_CANCELLED
        await until_state(elsewhere, unknown.payment_id, ended)
    record = gateway.charges()[key]
    assert record["confirmCalls"] == (1 if guarded else 2)
    assert (record["payment"] is None) is guarded


async def let_time_pass(sessions: Database, *, seconds: float) -> None:
    """Move the last confirm into the past, and make the payment due."""
    async with sessions.begin() as connection:
        earlier = payments.c.confirm_time - timedelta(seconds=seconds)
        await connection.execute(
            sa.update(payments).values(confirm_time=earlier, due_time=sa.func.now())
        )


async def test_a_cancelled_unknown_payment_ends_when_its_key_is_over(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator, sessions: Database
) -> None:
    key = key_of()
    await unknown_payment(sessions, key)
    # Before the payment is due: a sweep would confirm it.
    await payment.CancelPayment(cancel(record_only=True))
    for replica in (payment, elsewhere):
        await let_time_pass(sessions, seconds=440)
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await replica.CancelPayment(cancel(), timeout=SOON_S)
    await let_time_pass(sessions, seconds=30)
    for replica in (payment, elsewhere):
        ended = (await replica.CancelPayment(cancel())).payment
        assert (ended.state, ended.failure_code) == (pb.Payment.STATE_DECLINED, "NOT_CHARGED")
        assert ended.HasField("cancel_request_time")
        with refused("PAYMENT_CANCELLED"):
            await replica.ConfirmPayment(confirm(key))
        with refused("PAYMENT_KEY_USED"):
            await replica.ConfirmPayment(confirm(key, "c2"))
    assert key not in gateway.charges()


async def test_a_charge_that_arrives_after_the_cancellation_is_given_back(
    payment: Any, gateway: GatewaySimulator, sessions: Database
) -> None:
    """A confirm was in transit when the cancellation was stored."""
    key = key_of()
    payment_id = await unknown_payment(sessions, key)
    await payment.CancelPayment(cancel(record_only=True))
    await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    given_back = (await payment.CancelPayment(cancel())).payment
    assert given_back.state == pb.Payment.STATE_CANCELLED
    assert given_back.refunded == given_back.amount
    assert not given_back.refunded_outside.amount_minor
    assert gateway.charges()[key]["confirmCalls"] == 1


# -- record_only ---------------------------------------------------------------------------------


async def test_a_recorded_cancellation_is_carried_out_by_a_replica(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    first = await payment.CancelPayment(cancel(record_only=True))
    assert not first.replayed
    assert first.payment.HasField("cancel_request_time")
    with refused("PAYMENT_CANCELLED"):
        await elsewhere.ConfirmPayment(confirm(key))
    await until_state(elsewhere, paid.payment_id, pb.Payment.STATE_CANCELLED)
    for record_only in (True, False):
        done = await elsewhere.CancelPayment(cancel(record_only=record_only))
        assert done.payment.state == pb.Payment.STATE_CANCELLED
    assert gateway.charges()[key]["cancelCalls"] == 1


async def test_the_same_request_without_record_only_waits_for_the_refund(
    serve: Serve, own_gateway: GatewaySimulator
) -> None:
    key = key_of()
    async with serve(2, own_gateway) as (one, other):
        paid = (await one.ConfirmPayment(confirm(key))).payment
        own_gateway.kill()
        for replayed in (False, True):
            stored = await one.CancelPayment(cancel(record_only=True))
            assert (stored.replayed, stored.payment.state) == (replayed, paid.state)
        with refused("REQUEST_ID_REUSED"):
            await one.CancelPayment(cancel(record_only=True, reason="another"))
        assert await outcome(other.CancelPayment(cancel(), timeout=SOON_S)) in AWAY
        own_gateway.start()
        await until_state(one, paid.payment_id, pb.Payment.STATE_CANCELLED)
        refunded = await other.CancelPayment(cancel())
        assert (refunded.replayed, refunded.payment.state) == (False, pb.Payment.STATE_CANCELLED)


async def test_a_recorded_cancellation_of_no_confirmation_prevents_it(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    for replayed in (False, True):
        stored = await payment.CancelPayment(cancel(record_only=True))
        assert (stored.replayed, stored.HasField("payment")) == (replayed, False)
    with refused("PAYMENT_CANCELLED"):
        await elsewhere.ConfirmPayment(confirm(key))
    assert key not in gateway.charges()
