"""A payment as clients see it, its states, and the refusals that follow from them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from common.errors import Refusal
from common.money import Money
from payment_service.errors import (
    PaymentDeclined,
    PaymentInProgress,
    PaymentKeyUsed,
    PaymentMethodNotSupported,
    PaymentOutcomeUnknown,
    RefundRefused,
)

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)

NOT_CHARGED: Final = "NOT_CHARGED"
"""The failure_code of a payment that was never charged, as far as Tally knows: the gateway did not
know it when its key could not be confirmed any more, or a person said so. All other codes are the
gateway's."""


class PaymentState(enum.StrEnum):
    """The state of a payment."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    DECLINED = "DECLINED"
    UNKNOWN = "UNKNOWN"
    CANCELLED = "CANCELLED"


UNDECIDED: Final = frozenset({PaymentState.PENDING, PaymentState.UNKNOWN})
CANCELLABLE: Final = UNDECIDED | {PaymentState.CONFIRMED}


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as clients see it.

    Fields from ``refunded_minor`` on have defaults: responses that an earlier release stored do not
    have them.
    """

    payment_id: str
    order_id: str
    user_id: str
    amount: Money
    payment_key: str
    state: PaymentState
    gateway: str
    gateway_transaction_id: str | None
    failure_code: str | None
    create_time: datetime
    update_time: datetime
    refunded_minor: int = 0
    """An earlier release left 0 also when it gave the whole amount back: see ``refunded``."""
    refunded_outside_minor: int = 0
    """Of refunded_minor: what was not given back by Tally."""
    cancel_request_time: datetime | None = None
    """When the cancellation was stored; None also if an earlier release stored it."""
    refund_refusal_code: str | None = None
    """The gateway's code if it refused the refund permanently."""
    resolution_reason: str | None = None
    """What a person said who settled the payment."""
    unsupported_status: str | None = None
    """The gateway's status that Tally does not serve, if the payment had one."""

    @property
    def refunded(self) -> Money:
        """How much was given back, through Tally or outside it."""
        if self.state is PaymentState.CANCELLED:
            return self.amount
        return Money(self.amount.currency_code, self.refunded_minor)

    @property
    def refunded_outside(self) -> Money:
        """Of refunded: how much was given back outside Tally."""
        return Money(self.amount.currency_code, self.refunded_outside_minor)

    @property
    def left_minor(self) -> int:
        """How much of the amount has not been given back."""
        return self.amount.amount_minor - self.refunded.amount_minor

    def refusal(self) -> PaymentDeclined | PaymentMethodNotSupported:
        """What ConfirmPayment returns for a DECLINED payment."""
        if self.unsupported_status is not None:
            return PaymentMethodNotSupported(
                payment_id=self.payment_id, gateway_status=self.unsupported_status
            )
        return PaymentDeclined(payment_id=self.payment_id, failure_code=self.failure_code or "")

    def refund_refused(self) -> RefundRefused:
        return RefundRefused(
            payment_id=self.payment_id, gateway_code=self.refund_refusal_code or ""
        )

    def outcome_unknown(self) -> PaymentOutcomeUnknown:
        return PaymentOutcomeUnknown(payment_id=self.payment_id)

    def key_taken(self) -> Refusal:
        """The refusal of another request with this payment's key."""
        taken = PaymentInProgress if self.state in UNDECIDED else PaymentKeyUsed
        return taken(payment_key=self.payment_key)
