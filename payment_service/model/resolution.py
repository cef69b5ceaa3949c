"""What a person has found out about a payment, and when Tally stores it."""

from __future__ import annotations

from datetime import datetime

from common.errors import CurrencyMismatch, InvalidField
from payment_service.errors import PaymentInProgress, PaymentOutcomeDiffers
from payment_service.gateway.outcomes import Inconclusive, Unsupported
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import PaymentState
from payment_service.model.payment_command import Resolution, ResolvePayment


def check_amount(command: ResolvePayment) -> None:
    """Raise InvalidField unless the amount is there exactly if the resolution needs it."""
    if (command.amount is not None) != (command.resolution is Resolution.REFUNDED_OUTSIDE):
        raise InvalidField("amount", "required with OUTCOME_REFUNDED_OUTSIDE, and only with it")


def resolve(confirmation: Confirmation, command: ResolvePayment, now: datetime) -> None:
    """Settle the payment; nothing changes but the reason if it is settled in this way already.

    Raises PaymentOutcomeDiffers, PaymentOutcomeUnknown if only the gateway knows and did not reply,
    PaymentInProgress, CurrencyMismatch or InvalidField.
    """
    match command.resolution, confirmation.payment.state:
        case Resolution.NOT_CHARGED, PaymentState.DECLINED:
            pass
        case Resolution.NOT_CHARGED, PaymentState.UNKNOWN if not _may_be_paid(
            confirmation, command
        ):
            confirmation.settle_as_not_charged(now)
        case Resolution.CHARGED, PaymentState.CONFIRMED:
            pass
        case Resolution.CHARGED, PaymentState.UNKNOWN if isinstance(command.found, Inconclusive):
            raise confirmation.payment.outcome_unknown()
        case Resolution.REFUNDED_OUTSIDE, PaymentState.CANCELLED:
            pass
        case Resolution.REFUNDED_OUTSIDE, PaymentState.CONFIRMED:
            _refund_outside(confirmation, command, now)
        case _, state:
            raise PaymentOutcomeDiffers(
                payment_id=command.payment_id,
                state=state.value,
                gateway_outcome=type(command.found).__name__,
            )
    confirmation.note_resolution(command.reason)


def _may_be_paid(confirmation: Confirmation, command: ResolvePayment) -> bool:
    """Whether the customer may still pay, since an account is not closed yet."""
    to_close = confirmation.payment.unsupported_status is not None
    return to_close or isinstance(command.found, Unsupported)


def _refund_outside(confirmation: Confirmation, command: ResolvePayment, now: datetime) -> None:
    payment = confirmation.payment
    assert command.amount is not None
    if command.amount.currency_code != payment.amount.currency_code:
        raise CurrencyMismatch(payment_id=payment.payment_id)
    # What the gateway reported first just now is a part of what the person means, not more.
    reported = max(0, payment.refunded_minor - command.refunded_before_minor)
    more = max(0, command.amount_minor - reported)
    if more > payment.left_minor:
        raise InvalidField("amount", f"at most {payment.left_minor + reported} is left")
    if confirmation.open and confirmation.holder is not None:
        # The refund is at the gateway just now.
        raise PaymentInProgress(payment_key=payment.payment_key)
    if confirmation.open and isinstance(command.found, Inconclusive):
        # Tally's own refund may have arrived, and only its reply is lost.
        raise payment.outcome_unknown()
    if confirmation.open and more < payment.left_minor:
        raise InvalidField("amount", "the whole rest, which is about to be refunded")
    confirmation.refund_outside(more, now)
