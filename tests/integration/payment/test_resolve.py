"""ResolvePayment: a person's word counts unless the gateway contradicts it."""

from __future__ import annotations

from typing import Any

import pytest

from common.db.database import Database
from deploy.local.gateway.simulator import GatewaySimulator
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    Serve,
    cancel,
    charge,
    charged,
    confirm,
    key_of,
    only_payment,
    resolution,
    unknown_payment,
    until_state,
)
from tests.support.refusals import refused

NOT_CHARGED = pb.ResolvePaymentRequest.OUTCOME_NOT_CHARGED
REFUNDED = pb.ResolvePaymentRequest.OUTCOME_REFUNDED_OUTSIDE
CONFIRMED, DECLINED = pb.Payment.STATE_CONFIRMED, pb.Payment.STATE_DECLINED
CANCELLED = pb.Payment.STATE_CANCELLED


@pytest.mark.parametrize("away", [False, True], ids=["gateway there", "gateway away"])
async def test_an_unknown_payment_is_settled_as_not_charged(
    serve: Serve, own_gateway: GatewaySimulator, sessions: Database, away: bool
) -> None:
    key = key_of()
    payment_id = await unknown_payment(sessions, key)
    async with serve(2, own_gateway) as (one, other):
        if away:
            own_gateway.kill()
        first = await one.ResolvePayment(resolution(payment_id, NOT_CHARGED))
        assert (first.payment.state, first.payment.failure_code) == (DECLINED, "NOT_CHARGED")
        assert first.payment.resolution_reason == "seen at the counter"
        again = await other.ResolvePayment(resolution(payment_id, NOT_CHARGED))
        assert (again.replayed, again.payment) == (True, first.payment)
        with refused("REQUEST_ID_REUSED"):
            await other.ResolvePayment(resolution(payment_id, NOT_CHARGED, reason="another"))
        with refused("PAYMENT_DECLINED") as raised:
            await other.ConfirmPayment(confirm(key))
        assert raised.refusal.metadata["failure_code"] == "NOT_CHARGED"
        if away:
            own_gateway.start()
        # The same outcome is no contradiction.
        await one.ResolvePayment(resolution(payment_id, NOT_CHARGED, "r2"))
    assert key not in own_gateway.charges()


async def test_a_charge_that_is_found_later_is_given_back(
    payment: Any, gateway: GatewaySimulator, sessions: Database
) -> None:
    key = key_of()
    payment_id = await unknown_payment(sessions, key)
    await payment.ResolvePayment(resolution(payment_id, NOT_CHARGED))
    await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    with refused("PAYMENT_OUTCOME_DIFFERS") as raised:
        await payment.ResolvePayment(resolution(payment_id, NOT_CHARGED, "r2"))
    assert raised.refusal.metadata["gateway_outcome"] == "Confirmed"
    await until_state(payment, payment_id, CANCELLED)
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"
    with refused("PAYMENT_CANCELLED"):
        await payment.ConfirmPayment(confirm(key))


@pytest.mark.parametrize("outcome", ["NOT_CHARGED", "CHARGED"])
async def test_what_the_gateway_reports_is_stored(
    payment: Any, gateway: GatewaySimulator, sessions: Database, outcome: str
) -> None:
    key = key_of()
    payment_id = await unknown_payment(sessions, key)
    await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    if outcome == "CHARGED":
        found = await payment.ResolvePayment(charged(payment_id, "r1"))
        assert found.payment.state == CONFIRMED
    else:
        with refused("PAYMENT_OUTCOME_DIFFERS") as raised:
            await payment.ResolvePayment(resolution(payment_id, NOT_CHARGED))
        assert raised.refusal.metadata["state"] == "CONFIRMED"
    assert (await payment.ConfirmPayment(confirm(key))).replayed


async def test_charged_needs_the_gateways_word(
    serve: Serve, own_gateway: GatewaySimulator, sessions: Database
) -> None:
    payment_id = await unknown_payment(sessions, key_of())
    async with serve(1, own_gateway) as (one,):
        with refused("PAYMENT_OUTCOME_DIFFERS") as raised:
            await one.ResolvePayment(charged(payment_id, "r1"))
        assert raised.refusal.metadata["gateway_outcome"] == "NotFound"
        own_gateway.kill()
        with refused("PAYMENT_OUTCOME_UNKNOWN") as unknown:
            await one.ResolvePayment(charged(payment_id, "r1"))
        assert unknown.refusal.retry_after_s is not None


async def test_a_refused_refund_made_by_other_means_ends_the_cancellation(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("no_refund_")
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    with refused("REFUND_REFUSED"):
        await payment.CancelPayment(cancel())
    part = resolution(paid.payment_id, REFUNDED, amount_minor=5_000)
    seen = (await payment.ResolvePayment(part)).payment
    assert (seen.state, seen.refunded.amount_minor) == (CONFIRMED, 5_000)
    with refused("REFUND_REFUSED"):
        await elsewhere.CancelPayment(cancel())
    rest = resolution(paid.payment_id, REFUNDED, "r2", amount_minor=10_000)
    await elsewhere.ResolvePayment(rest)
    done = (await elsewhere.CancelPayment(cancel())).payment
    assert done.state == CANCELLED
    assert done.refunded == done.refunded_outside == done.amount
    assert gateway.charges()[key]["cancelCalls"] == 1


async def test_a_dashboard_refund_that_a_person_records_counts_once(
    payment: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    gateway.refund_in_dashboard(key, 5_000)
    recorded = resolution(paid.payment_id, REFUNDED, amount_minor=5_000)
    seen = (await payment.ResolvePayment(recorded)).payment
    assert (seen.refunded.amount_minor, seen.refunded_outside.amount_minor) == (5_000, 5_000)


async def test_after_a_refund_in_cash_the_gateway_gives_back_the_rest(
    payment: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    await payment.ResolvePayment(resolution(paid.payment_id, REFUNDED, amount_minor=12_000))
    done = (await payment.CancelPayment(cancel())).payment
    assert done.state == CANCELLED
    assert (done.refunded.amount_minor, done.refunded_outside.amount_minor) == (15_000, 12_000)
    assert gateway.charges()[key]["payment"]["balanceAmount"] == 12_000


@pytest.mark.parametrize(
    ("outcome", "amount_minor", "reason"),
    [
        (REFUNDED, 15_001, "INVALID_FIELD"),
        (REFUNDED, 0, "INVALID_FIELD"),
        (NOT_CHARGED, 1, "INVALID_FIELD"),
        (NOT_CHARGED, 0, "PAYMENT_OUTCOME_DIFFERS"),
    ],
)
async def test_a_resolution_that_does_not_fit_changes_nothing(
    payment: Any, outcome: int, amount_minor: int, reason: str
) -> None:
    paid = (await payment.ConfirmPayment(confirm(key_of()))).payment
    with refused(reason, field="amount" if reason == "INVALID_FIELD" else None):
        await payment.ResolvePayment(
            resolution(paid.payment_id, outcome, amount_minor=amount_minor)
        )
    assert await only_payment(payment) == paid


async def test_a_refund_in_another_currency_is_refused(payment: Any) -> None:
    paid = (await payment.ConfirmPayment(confirm(key_of(), currency="USD"))).payment
    with refused("CURRENCY_MISMATCH"):
        await payment.ResolvePayment(resolution(paid.payment_id, REFUNDED, amount_minor=1))


async def test_a_payment_that_does_not_exist_is_not_found(payment: Any) -> None:
    for payment_id in ("nonsense", "01a21b1d-30f5-74d8-8809-05721d0da577"):
        with refused("PAYMENT_NOT_FOUND"):
            await payment.ResolvePayment(charged(payment_id, "r1"))
