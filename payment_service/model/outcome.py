"""What an outcome of the gateway changes in a payment."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from payment_service.gateway.outcomes import (
    Cancelled,
    Confirmed,
    Declined,
    GatewayOutcome,
    NotCancellable,
    NotFound,
    PartlyCancelled,
    Unsupported,
    Untouched,
)
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import NOT_CHARGED, PaymentState
from payment_service.model.payment_command import RecordOutcome

FOUND_LATER_REASON: Final = "charged after the payment was settled as not charged"
"""Stored as the cancel reason of a charge that was found too late."""


def record(
    payment: Confirmation,
    command: RecordOutcome,
    now: datetime,
    lease: timedelta,
    confirm_window: timedelta,
) -> None:
    """Apply an outcome of the gateway.

    ``confirm_window``: how long after its last confirm a key can still be confirmed. What the
    gateway did counts in every state; other outcomes change open payments only.
    """
    if payment.released:
        return
    held = command.holder == payment.holder
    first_call = held and payment.payment.state is PaymentState.PENDING
    if first_call and isinstance(command.outcome, Untouched):
        # The state is PENDING until a second replica acquires the payment: this was the claim's
        # only call. After that, one call that did nothing proves nothing.
        payment.release()
        return
    if not _apply(payment, command, now, confirm_window, held=held):
        if not held:
            return
        if not (first_call and command.keep_lease):
            payment.postpone(command.pause, now)
            return
        payment.become(PaymentState.UNKNOWN, now)
    payment.hold(command.holder if held and command.keep_lease else None, now, lease)


def is_known(payment: Confirmation, found: GatewayOutcome) -> bool:
    """Whether the gateway still has the payment in the state that is recorded."""
    match found:
        case Unsupported():
            return payment.undecided
        case Confirmed():
            return not payment.undecided
        case PartlyCancelled():
            return not _is_new(payment, found)
        case _:
            return False


def _apply(
    payment: Confirmation,
    command: RecordOutcome,
    now: datetime,
    confirm_window: timedelta,
    *,
    held: bool,
) -> bool:
    """Change the payment to what the gateway reported; returns whether that changed it."""
    undecided = payment.undecided
    match command.outcome:
        case Confirmed(transaction_id) if undecided or payment.settled_as_not_charged:
            _charged(payment, transaction_id, now)
        case Cancelled() | PartlyCancelled() as found if _is_new(payment, found):
            _refunded(payment, found, now)
        case Declined(code) if undecided:
            payment.declined(payment.payment.unsupported_status or code, now)
        case NotFound() if _never_charged(payment, now - command.age - confirm_window):
            payment.declined(NOT_CHARGED, now)
        case NotCancellable(code) if held and not undecided:
            payment.payment = replace(payment.payment, refund_refusal_code=code)
            payment.become(payment.payment.state, now)
        case Unsupported(status) if held and undecided:
            payment.payment = replace(payment.payment, unsupported_status=status)
            payment.become(PaymentState.UNKNOWN, now)
        case Unsupported(status) if payment.settled_as_not_charged:
            # The customer could still pay: the account has to be closed.
            payment.cancel(FOUND_LATER_REASON, None, now)
            payment.payment = replace(payment.payment, unsupported_status=status, failure_code=None)
            payment.become(PaymentState.UNKNOWN, now)
        case _:
            return False
    return True


def _charged(payment: Confirmation, transaction_id: str, now: datetime) -> None:
    if payment.settled_as_not_charged:
        payment.cancel(FOUND_LATER_REASON, None, now)
    payment.payment = replace(
        payment.payment, gateway_transaction_id=transaction_id, failure_code=None
    )
    payment.become(PaymentState.CONFIRMED, now)


def _never_charged(payment: Confirmation, asked_before: datetime) -> bool:
    """Whether a look-up without a result proves it: no confirm can arrive any more."""
    cancelled = payment.undecided and payment.cancel_reason is not None
    return cancelled and payment.confirm_time <= asked_before


# -- refunds -------------------------------------------------------------------------------------


def _is_new(payment: Confirmation, found: Cancelled | PartlyCancelled) -> bool:
    """Whether more was given back than is recorded, of a charge that there was."""
    if payment.undecided or payment.settled_as_not_charged:
        return True
    confirmed = payment.payment.state is PaymentState.CONFIRMED
    return confirmed and _given_back(payment, found)[0] > payment.payment.refunded_minor


def _refunded(payment: Confirmation, found: Cancelled | PartlyCancelled, now: datetime) -> None:
    if payment.settled_as_not_charged and isinstance(found, PartlyCancelled):
        payment.cancel(FOUND_LATER_REASON, None, now)
    payment.give_back(*_given_back(payment, found), now, found.transaction_id)


def _given_back(payment: Confirmation, found: Cancelled | PartlyCancelled) -> tuple[int, int]:
    """What the gateway reports as given back, in all and outside Tally, in minor units."""
    amount_minor = payment.payment.amount.amount_minor
    whole = isinstance(found, Cancelled)
    at_gateway = amount_minor if isinstance(found, Cancelled) else found.refunded_minor
    own = _own_part(payment, found, at_gateway)
    # A person may have recorded a refund before the gateway reports it: it is counted once.
    outside = max(payment.payment.refunded_outside_minor, at_gateway - own)
    refunded = amount_minor if whole else min(amount_minor, own + outside)
    return refunded, min(outside, refunded)


def _own_part(payment: Confirmation, found: Cancelled | PartlyCancelled, at_gateway: int) -> int:
    """How much of it Tally gave back: the parts that have this cancellation's reason."""
    reason = payment.cancel_reason
    if reason is None or payment.payment.state is not PaymentState.CONFIRMED:
        return 0
    if not found.refunds:
        return at_gateway
    # The gateway cuts long reasons.
    own = [one for one in found.refunds if one.reason and reason.startswith(one.reason)]
    return sum(one.amount_minor for one in own)
