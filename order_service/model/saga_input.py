"""What a saga works with: the request's input, the results of its steps, and why it failed.

All of it is stored as JSON: the names of fields are part of the stored format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from common.errors import Code, FieldViolation, QuotaViolation, Refusal, RemoteRefusal
from order_service.errors import AmountExceedsDue, PaymentKeyRequired


@dataclass(frozen=True, slots=True)
class StepResults:
    """What the steps of a saga returned."""

    discount_minor: int = 0
    payment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What each source pays, in minor units of the order's currency."""

    discount_minor: int
    balance_minor: int
    gateway_minor: int


@dataclass(frozen=True, slots=True)
class PayInput:
    """The content of a PayOrder request, and what its steps need of the order."""

    request_id: str
    digest: str
    """The request's digest in hex: it distinguishes a repetition from other content."""
    currency_code: str
    subtotal_minor: int
    coupon_id: str | None
    balance_minor: int | None
    payment_key: str | None

    @property
    def uses_coupon(self) -> bool:
        """Whether a coupon is redeemed: a free order has nothing to discount."""
        return self.coupon_id is not None and self.subtotal_minor > 0

    @property
    def uses_gateway(self) -> bool:
        """Whether the gateway may be called; what is left for it is known after the coupon."""
        return self.payment_key is not None

    def check(self, order_id: str) -> None:
        """Refuse early what is certain to be refused later.

        A coupon can only lower the amount due. Raises AmountExceedsDue or PaymentKeyRequired.
        """
        if self.uses_coupon:
            if (self.balance_minor or 0) > self.subtotal_minor:
                raise AmountExceedsDue(order_id=order_id)
        else:
            self.parts(order_id, StepResults())

    def parts(self, order_id: str, results: StepResults) -> Parts:
        """What each source pays, once the discount is known.

        Raises AmountExceedsDue or PaymentKeyRequired.
        """
        due_minor = self.subtotal_minor - results.discount_minor
        balance_minor = self.balance_minor
        if balance_minor is None:
            balance_minor = due_minor if self.payment_key is None else 0
        if balance_minor > due_minor:
            raise AmountExceedsDue(order_id=order_id)
        if balance_minor < due_minor and self.payment_key is None:
            raise PaymentKeyRequired(order_id=order_id)
        return Parts(results.discount_minor, balance_minor, due_minor - balance_minor)


@dataclass(frozen=True, slots=True)
class CancelInput:
    """The content of a CancelOrder request, and how the order was paid."""

    request_id: str
    digest: str
    currency_code: str
    reason: str
    pay_saga_id: str
    """The saga that paid. Its steps' request_ids are ``<pay_saga_id>:<step>``."""
    coupon_id: str | None
    balance_minor: int
    gateway_minor: int

    @property
    def uses_coupon(self) -> bool:
        return self.coupon_id is not None

    @property
    def uses_gateway(self) -> bool:
        return self.gateway_minor > 0

    def parts(self, order_id: str, results: StepResults) -> Parts:  # noqa: ARG002 - as PayInput
        return Parts(0, self.balance_minor, self.gateway_minor)


SagaInput: TypeAlias = PayInput | CancelInput


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: the refusal that its caller gets when it has been compensated."""

    code: Code
    reason: str
    message: str
    metadata: dict[str, str]
    fields: tuple[FieldViolation, ...] = ()
    quota: tuple[QuotaViolation, ...] = ()

    @classmethod
    def of(cls, refusal: Refusal) -> Failure:
        """Without RetryInfo: the refusal is stored, so a repetition gets the same one."""
        return cls(
            refusal.code,
            refusal.reason,
            refusal.message,
            dict(refusal.metadata),
            refusal.fields,
            refusal.quota,
        )

    def refusal(self) -> Refusal:
        return RemoteRefusal(
            self.code,
            self.reason,
            self.message,
            self.metadata,
            fields=self.fields,
            quota=self.quota,
        )
