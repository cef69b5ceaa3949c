"""The refusals of the payment service; one without a code is FAILED_PRECONDITION."""

from __future__ import annotations

from common.errors import Code, NotFound, Refusal


class PaymentNotFound(NotFound, reason="PAYMENT_NOT_FOUND"):
    """The user has no payment with this id."""


class PaymentKeyUsed(Refusal, code=Code.ALREADY_EXISTS, reason="PAYMENT_KEY_USED"):
    """This payment_key has paid or was declined under another request_id; it is used up."""


class PaymentDeclined(Refusal, reason="PAYMENT_DECLINED"):
    """The gateway declined the payment; nothing was charged, and the key is used up."""


class PaymentMethodNotSupported(Refusal, reason="PAYMENT_METHOD_NOT_SUPPORTED"):
    """The customer chose a method that Tally does not serve; nothing was charged, the key is used.

    The metadata has ``gateway_status``, such as WAITING_FOR_DEPOSIT.
    """


class RefundRefused(Refusal, reason="REFUND_REFUSED"):
    """The gateway refused the refund permanently; a person has to settle the payment.

    The metadata has ``gateway_code``, the gateway's code for the refusal.
    """


class PaymentOutcomeDiffers(Refusal, reason="PAYMENT_OUTCOME_DIFFERS"):
    """The gateway or the payment's state contradicts this outcome.

    The metadata has the payment's ``state`` and ``gateway_outcome``, what the gateway reported.
    """


class PaymentCancelled(Refusal, reason="PAYMENT_CANCELLED"):
    """This confirmation was cancelled and cannot happen any more."""


class PaymentInProgress(
    Refusal, code=Code.ABORTED, reason="PAYMENT_IN_PROGRESS", retry_after_s=0.5
):
    """A confirmation with this payment_key is at the gateway; its outcome is not known yet."""


class GatewayUnavailable(
    Refusal, code=Code.UNAVAILABLE, reason="GATEWAY_UNAVAILABLE", retry_after_s=1.0
):
    """The payment gateway could not be reached; this call changed nothing there.

    The metadata has ``circuit`` = ``open`` if it is known to be away for some seconds.
    """


class PaymentOutcomeUnknown(
    Refusal, code=Code.UNAVAILABLE, reason="PAYMENT_OUTCOME_UNKNOWN", retry_after_s=1.0
):
    """The gateway was reached and its outcome is not known yet; repeat the call."""
