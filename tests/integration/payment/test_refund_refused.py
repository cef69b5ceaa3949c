"""A refund that the gateway refuses permanently, and one that somebody else has made."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from common.db.database import Database
from common.metrics import REGISTRY
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.store.figures import OPEN_PAYMENTS
from payment_service.tables import payments
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    cancel,
    charged,
    confirm,
    key_of,
    only_payment,
    resolution,
    until,
)
from tests.support.refusals import refused

CODE = "NOT_CANCELABLE_PAYMENT"


async def test_a_refused_refund_is_told_and_not_tried_again(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator, sessions: Database
) -> None:
    key = key_of("no_refund_")
    await payment.ConfirmPayment(confirm(key))
    with capture_logs() as lines:
        for replica in (payment, elsewhere, payment):
            with refused("REFUND_REFUSED") as raised:
                await replica.CancelPayment(cancel())
            assert raised.refusal.metadata["gateway_code"] == CODE
            assert raised.refusal.retry_after_s is None
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert (line["event"], line["code"]) == ("refund_refused", CODE)
    kept = await only_payment(payment)
    assert (kept.state, kept.refund_refusal_code) == (pb.Payment.STATE_CONFIRMED, CODE)
    assert not kept.refunded.amount_minor
    async with sessions.reads.connect() as connection:
        assert await connection.scalar(sa.select(payments.c.due_time)) is None
    assert gateway.charges()[key]["cancelCalls"] == 1
    # The fence stands, and a stored one is enough for record_only.
    assert (await elsewhere.CancelPayment(cancel(record_only=True))).payment == kept
    with refused("PAYMENT_CANCELLED"):
        await elsewhere.ConfirmPayment(confirm(key))


async def test_a_recorded_cancellation_ends_when_it_is_refused(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("no_refund_")
    await payment.ConfirmPayment(confirm(key))
    await payment.CancelPayment(cancel(record_only=True))
    await until(lambda: only_payment(elsewhere), lambda found: found.refund_refusal_code)
    with refused("REFUND_REFUSED"):
        await elsewhere.CancelPayment(cancel())
    assert gateway.charges()[key]["cancelCalls"] == 1


async def test_a_refused_refund_is_an_open_payment_until_a_person_settles_it(
    payment: Any, sessions: Database
) -> None:
    async def open_payments() -> dict[str, float | None]:
        await OPEN_PAYMENTS.refresh(sessions)
        return {
            state: REGISTRY.get_sample_value("tally_open_payments", {"state": state})
            for state in ("CONFIRMED", "REFUND_REFUSED")
        }

    await payment.ConfirmPayment(confirm(key_of("no_refund_")))
    assert await open_payments() == {"CONFIRMED": 0, "REFUND_REFUSED": 0}
    with refused("REFUND_REFUSED"):
        await payment.CancelPayment(cancel())
    assert await open_payments() == {"CONFIRMED": 0, "REFUND_REFUSED": 1}
    kept = await only_payment(payment)
    settled = pb.ResolvePaymentRequest.OUTCOME_REFUNDED_OUTSIDE
    amount_minor = kept.amount.amount_minor
    await payment.ResolvePayment(resolution(kept.payment_id, settled, amount_minor=amount_minor))
    assert await open_payments() == {"CONFIRMED": 0, "REFUND_REFUSED": 0}


@pytest.mark.parametrize("prefix", ["", "no_refund_"])
async def test_a_refund_made_in_the_dashboard_is_as_good(
    payment: Any, gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    await payment.ConfirmPayment(confirm(key))
    gateway.refund_in_dashboard(key)
    done = (await payment.CancelPayment(cancel())).payment
    assert done.state == pb.Payment.STATE_CANCELLED
    assert done.refunded == done.refunded_outside == done.amount


@pytest.mark.parametrize("seen_before", [False, True])
async def test_a_cancel_of_a_partly_refunded_payment_gives_back_the_rest(
    payment: Any, gateway: GatewaySimulator, seen_before: bool
) -> None:
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    gateway.refund_in_dashboard(key, 4_000)
    if seen_before:
        seen = await payment.ResolvePayment(charged(paid.payment_id, "r1"))
        assert seen.payment.refunded.amount_minor == 4_000
    done = (await payment.CancelPayment(cancel())).payment
    assert done.state == pb.Payment.STATE_CANCELLED
    assert (done.refunded.amount_minor, done.refunded_outside.amount_minor) == (15_000, 4_000)
    assert gateway.charges()[key]["payment"]["balanceAmount"] == 0


async def test_after_two_partial_refunds_elsewhere_the_rest_is_given_back(
    payment: Any, gateway: GatewaySimulator
) -> None:
    """The gateway has less than Tally asks for, since it reported the first refund only."""
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    gateway.refund_in_dashboard(key, 4_000)
    await payment.ResolvePayment(charged(paid.payment_id, "r1"))
    gateway.refund_in_dashboard(key, 5_000)
    done = (await payment.CancelPayment(cancel())).payment
    assert done.state == pb.Payment.STATE_CANCELLED
    assert (done.refunded.amount_minor, done.refunded_outside.amount_minor) == (15_000, 9_000)
    assert gateway.charges()[key]["payment"]["balanceAmount"] == 0


async def test_a_partial_refund_elsewhere_is_kept_when_the_rest_is_refused(
    payment: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("no_refund_")
    await payment.ConfirmPayment(confirm(key))
    gateway.refund_in_dashboard(key, 4_000)
    with refused("REFUND_REFUSED"):
        await payment.CancelPayment(cancel())
    kept = await only_payment(payment)
    assert (kept.state, kept.refund_refusal_code) == (pb.Payment.STATE_CONFIRMED, CODE)
    assert kept.refunded.amount_minor == kept.refunded_outside.amount_minor == 4_000
