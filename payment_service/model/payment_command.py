"""Commands about payments: from clients, from operators, and from the work at the gateway."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from common.identity.origin import Origin
from common.money import Money
from common.request_key import RequestKey, digest_of
from payment_service.errors import GatewayUnavailable, PaymentCancelled
from payment_service.gateway.outcomes import GatewayOutcome, Unknown


@dataclass(frozen=True, slots=True)
class ConfirmPayment:
    """Claim the payment_key for this request, to charge it."""

    order_id: str
    user_id: str
    amount: Money
    payment_key: str
    request_id: str
    holder: str
    """The id of this call as a lease holder; not part of the request's content."""
    origin: Origin = Origin.UNVERIFIED
    """Not part of the request's content."""
    circuit_open: bool = False
    """Whether the gateway is known not to be called now; not part of the request's content."""

    @property
    def key(self) -> RequestKey:
        return confirm_key(self.user_id, self.request_id)

    @property
    def confirm_key(self) -> RequestKey:
        return self.key

    @property
    def digest(self) -> bytes:
        return digest_of_payment(self.order_id, self.amount, self.payment_key)


@dataclass(frozen=True, slots=True)
class CancelPayment:
    """Undo one confirmation, or prevent it for ever."""

    confirm_request_id: str
    user_id: str
    reason: str
    request_id: str
    holder: str
    """The id of this call as a lease holder; not part of the request's content."""
    requested: bool = False
    """Whether this call stored the cancellation request; not part of the request's content."""
    record_only: bool = False
    """Whether the response is due when the cancellation is stored; not part of the content."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("CancelPayment", self.user_id, self.request_id)

    @property
    def confirm_key(self) -> RequestKey:
        return confirm_key(self.user_id, self.confirm_request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.confirm_request_id, self.reason)


@dataclass(frozen=True, slots=True)
class BeginConfirm:
    """Ask for permission to send a confirm to the gateway, at the last moment before it."""

    payment_id: str
    confirm_key: RequestKey
    holder: str


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Store the outcome of a call to the gateway."""

    payment_id: str
    confirm_key: RequestKey
    outcome: GatewayOutcome
    holder: str
    pause: timedelta
    """Until the next try, if this outcome leaves the payment open."""
    keep_lease: bool = False
    """Whether the holder itself continues at once."""
    age: timedelta = timedelta(0)
    """How long ago the call began that had this outcome."""


class Resolution(enum.StrEnum):
    """What a person has found out or done."""

    NOT_CHARGED = "NOT_CHARGED"
    CHARGED = "CHARGED"
    REFUNDED_OUTSIDE = "REFUNDED_OUTSIDE"


_NO_KEY: Final = RequestKey("", "", "")
_NOT_ASKED: Final = Unknown("not asked")


@dataclass(frozen=True, slots=True)
class ResolvePayment:
    """Settle a payment as a person says, unless the gateway contradicts it."""

    payment_id: str
    resolution: Resolution
    amount: Money | None
    """How much was given back; None unless REFUNDED_OUTSIDE."""
    reason: str
    request_id: str
    confirm_key: RequestKey = _NO_KEY
    """The payment's, once it is read; not part of the request's content, as what follows."""
    found: GatewayOutcome = _NOT_ASKED
    """What the gateway reported just now. A final status is already recorded."""
    refunded_before_minor: int = 0
    """How much of the payment was given back before the gateway was asked."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("ResolvePayment", "", self.request_id)

    @property
    def digest(self) -> bytes:
        amount = ("", 0) if self.amount is None else (self.amount.currency_code, self.amount_minor)
        return digest_of(self.payment_id, self.resolution.value, *amount, self.reason)

    @property
    def amount_minor(self) -> int:
        return 0 if self.amount is None else self.amount.amount_minor


Command = ConfirmPayment | CancelPayment | ResolvePayment | BeginConfirm | RecordOutcome


def confirm_key(user_id: str, request_id: str) -> RequestKey:
    """The key of a confirmation's response or tombstone."""
    return RequestKey("ConfirmPayment", user_id, request_id)


def cancelled(confirm: RequestKey) -> PaymentCancelled:
    """The refusal of a confirmation that has a tombstone."""
    return PaymentCancelled(user_id=confirm.scope, request_id=confirm.request_id)


def gateway_unavailable(payment_key: str, *, circuit_open: bool) -> GatewayUnavailable:
    """The refusal of a confirmation that was not sent."""
    if circuit_open:
        return GatewayUnavailable(payment_key=payment_key, circuit="open")
    return GatewayUnavailable(payment_key=payment_key)


def digest_of_payment(order_id: str, amount: Money, payment_key: str) -> bytes:
    return digest_of(order_id, amount.currency_code, amount.amount_minor, payment_key)
