"""What a person's word and a late report of the gateway may change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.errors import Refusal
from common.money import Money
from payment_service.gateway.outcomes import (
    Confirmed,
    GatewayOutcome,
    NotFound,
    NotSent,
    Unknown,
    Unsupported,
)
from payment_service.model.confirmation import Confirmation
from payment_service.model.outcome import record
from payment_service.model.payment import PaymentState
from payment_service.model.payment_command import (
    ConfirmPayment,
    RecordOutcome,
    Resolution,
    ResolvePayment,
)
from payment_service.model.resolution import resolve

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=3)
WON = Money("KRW", 5_000)
CHARGED = Confirmed("t-1", WON)


def recorded(payment: Confirmation, outcome: GatewayOutcome, holder: str = "replica") -> None:
    command = RecordOutcome("p-1", payment.key, outcome, holder, timedelta(seconds=1))
    record(payment, command, NOW, LEASE, timedelta(seconds=900))


def payment_after(*outcomes: GatewayOutcome) -> Confirmation:
    """A payment whose first confirm and look-ups had these outcomes."""
    command = ConfirmPayment("o-1", "ann", WON, "key-1", "r-1", "replica")
    payment = Confirmation.claim(command, "p-1", "toss", NOW, LEASE)
    for outcome in outcomes:
        recorded(payment, outcome)
        if payment.open:
            payment.acquire("replica", NOW + timedelta(hours=1), LEASE)
    return payment


def settle(
    payment: Confirmation, resolution: Resolution, found: GatewayOutcome
) -> PaymentState | str:
    """The state after a person settled the payment, or the reason of the refusal."""
    amount = WON if resolution is Resolution.REFUNDED_OUTSIDE else None
    command = ResolvePayment("p-1", resolution, amount, "seen", "x-1", found=found)
    try:
        resolve(payment, command, NOW)
    except Refusal as refusal:
        return refusal.reason
    return payment.payment.state


@pytest.mark.parametrize("found", [NotSent("away"), Unknown("timeout")], ids=type)
def test_no_refund_is_recorded_beside_one_whose_reply_is_lost(found: GatewayOutcome) -> None:
    payment = payment_after(CHARGED)
    payment.request_cancel("no longer wanted", "c-1", NOW)
    payment.acquire("replica", NOW, LEASE)
    recorded(payment, Unknown("the reply to the refund was lost"))
    assert settle(payment, Resolution.REFUNDED_OUTSIDE, found) == "PAYMENT_OUTCOME_UNKNOWN"
    assert payment.payment.refunded_minor == 0


@pytest.mark.parametrize("found", [NotFound(), NotSent("away")], ids=type)
def test_an_account_that_is_not_closed_cannot_be_settled_as_not_charged(
    found: GatewayOutcome,
) -> None:
    payment = payment_after(Unsupported("WAITING_FOR_DEPOSIT"))
    assert settle(payment, Resolution.NOT_CHARGED, found) == "PAYMENT_OUTCOME_DIFFERS"


def test_an_account_found_after_the_payment_was_settled_is_closed() -> None:
    payment = payment_after(Unknown("timeout"))
    payment.postpone(timedelta(0), NOW)
    assert settle(payment, Resolution.NOT_CHARGED, NotSent("away")) is PaymentState.DECLINED
    assert not payment.open
    recorded(payment, Unsupported("WAITING_FOR_DEPOSIT"), "another")
    assert payment.open
    assert payment.cancel_reason is not None
    assert payment.payment.unsupported_status == "WAITING_FOR_DEPOSIT"
