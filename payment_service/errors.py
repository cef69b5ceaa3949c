"""The refusals of the payment service.

├── PaymentNotFound          NOT_FOUND             PAYMENT_NOT_FOUND
├── PaymentKeyUsed           ALREADY_EXISTS        PAYMENT_KEY_USED
├── PaymentDeclined          FAILED_PRECONDITION   PAYMENT_DECLINED
├── PaymentCancelled         FAILED_PRECONDITION   PAYMENT_CANCELLED
├── PaymentInProgress        ABORTED               PAYMENT_IN_PROGRESS
├── GatewayUnavailable       UNAVAILABLE           GATEWAY_UNAVAILABLE
└── PaymentOutcomeUnknown    UNAVAILABLE           PAYMENT_OUTCOME_UNKNOWN
"""

from __future__ import annotations

from common.errors import Code, NotFound, Refusal


class PaymentNotFound(NotFound):
    """The user has no payment with this id."""

    reason = "PAYMENT_NOT_FOUND"


class PaymentKeyUsed(Refusal):
    """This payment_key has paid or was declined under another request_id; it is used up."""

    code = Code.ALREADY_EXISTS
    reason = "PAYMENT_KEY_USED"


class PaymentDeclined(Refusal):
    """The gateway declined the payment; nothing was charged, and the key is used up."""

    reason = "PAYMENT_DECLINED"


class PaymentCancelled(Refusal):
    """This confirmation was cancelled and cannot happen any more."""

    reason = "PAYMENT_CANCELLED"


class PaymentInProgress(Refusal):
    """A confirmation with this payment_key is at the gateway; its outcome is not known yet."""

    code = Code.ABORTED
    reason = "PAYMENT_IN_PROGRESS"
    retry_after_s = 0.5


class GatewayUnavailable(Refusal):
    """The payment gateway could not be reached; this call changed nothing there."""

    code = Code.UNAVAILABLE
    reason = "GATEWAY_UNAVAILABLE"
    retry_after_s = 1.0


class PaymentOutcomeUnknown(Refusal):
    """The gateway was reached and its outcome is not known yet; repeat the call."""

    code = Code.UNAVAILABLE
    reason = "PAYMENT_OUTCOME_UNKNOWN"
    retry_after_s = 1.0
