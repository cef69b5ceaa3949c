"""A payment method that Tally does not serve: its account is closed, then it is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.database import Database
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.gateway.outcomes import Unknown
from payment_service.gateway.toss import TossGateway
from payment_service.tables import payments
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    Serve,
    cancel,
    charge,
    confirm,
    key_of,
    only_payment,
    unknown_payment,
    until_state,
)
from tests.support.refusals import refused

STATUS = "WAITING_FOR_DEPOSIT"


async def test_a_virtual_account_is_closed_and_refused(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("deposit_")
    for replica in (payment, elsewhere, payment):
        with refused("PAYMENT_METHOD_NOT_SUPPORTED") as raised:
            await replica.ConfirmPayment(confirm(key))
        assert raised.refusal.metadata["gateway_status"] == STATUS
        assert raised.refusal.retry_after_s is None
        with refused("PAYMENT_KEY_USED"):
            await replica.ConfirmPayment(confirm(key, "c2"))
    kept = await only_payment(payment)
    assert (kept.state, kept.failure_code) == (pb.Payment.STATE_DECLINED, STATUS)
    record = gateway.charges()[key]
    assert (record["confirmCalls"], record["cancelCalls"]) == (1, 1)
    assert (record["payment"]["status"], record["payment"]["approvedAt"]) == ("CANCELED", None)
    assert (await payment.CancelPayment(cancel())).payment == kept


async def test_closing_is_repeated_by_any_replica_until_it_is_done(
    serve: Serve, gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of("deposit_")
    close, lost = TossGateway.cancel, asyncio.Event()

    async def closing(*arguments: Any) -> Any:
        return await close(*arguments) if lost.is_set() else Unknown("lost")

    monkeypatch.setattr(TossGateway, "cancel", closing)
    async with serve(1, gateway, resolve_interval_s=60) as (one,):
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await one.ConfirmPayment(confirm(key))
        unknown = await only_payment(one)
        assert unknown.state == pb.Payment.STATE_UNKNOWN
    lost.set()
    async with serve(1, gateway) as (fresh,):
        await until_state(fresh, unknown.payment_id, pb.Payment.STATE_DECLINED)
        with refused("PAYMENT_METHOD_NOT_SUPPORTED"):
            await fresh.ConfirmPayment(confirm(key))
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_account_found_by_a_look_up_is_closed(
    payment: Any, gateway: GatewaySimulator, sessions: Database, cancelled: bool
) -> None:
    key = key_of("deposit_")
    payment_id = await unknown_payment(sessions, key)
    await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    if cancelled:
        await payment.CancelPayment(cancel(record_only=True))
    else:
        async with sessions.begin() as connection:
            await connection.execute(sa.update(payments).values(due_time=sa.func.now()))
    await until_state(payment, payment_id, pb.Payment.STATE_DECLINED)
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"
    with refused("PAYMENT_CANCELLED" if cancelled else "PAYMENT_METHOD_NOT_SUPPORTED"):
        await payment.ConfirmPayment(confirm(key))


async def test_a_deposit_before_the_account_is_closed_is_a_payment(
    payment: Any, gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway refuses to give a deposit back without an account to send it to."""
    key = key_of("deposit_")
    close = TossGateway.cancel

    async def deposited(*arguments: Any) -> Any:
        await asyncio.to_thread(gateway.deposit, key)
        return await close(*arguments)

    monkeypatch.setattr(TossGateway, "cancel", deposited)
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    assert paid.state == pb.Payment.STATE_CONFIRMED
    assert gateway.charges()[key]["payment"]["status"] == "DONE"
