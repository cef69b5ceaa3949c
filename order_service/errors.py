"""The refusals of the order service.

├── ProductNotFound       NOT_FOUND             PRODUCT_NOT_FOUND
├── OrderNotFound         NOT_FOUND             ORDER_NOT_FOUND
├── SagaNotFound          NOT_FOUND             SAGA_NOT_FOUND
├── OutOfStock            FAILED_PRECONDITION   OUT_OF_STOCK
├── OrderNotPayable       FAILED_PRECONDITION   ORDER_NOT_PAYABLE
├── OrderNotCancellable   FAILED_PRECONDITION   ORDER_NOT_CANCELLABLE
├── PaymentKeyRequired    FAILED_PRECONDITION   PAYMENT_KEY_REQUIRED
├── SagaNotRetryable      FAILED_PRECONDITION   SAGA_NOT_RETRYABLE
├── AmountExceedsDue      INVALID_ARGUMENT      AMOUNT_EXCEEDS_DUE
├── PaymentInProgress     ABORTED               PAYMENT_IN_PROGRESS
├── NotPaid               UNAVAILABLE           GATEWAY_UNAVAILABLE
├── PaymentOutcomeUnknown UNAVAILABLE           PAYMENT_OUTCOME_UNKNOWN
├── CartChanged           ABORTED               CART_CHANGED
└── SagaLost              inside the service only
"""

from __future__ import annotations

from collections.abc import Iterable

from common.errors import Code, NotFound, QuotaViolation, Refusal


class ProductNotFound(NotFound):
    """There is no product with this id."""

    reason = "PRODUCT_NOT_FOUND"


class OrderNotFound(NotFound):
    """This user has no order with this id."""

    reason = "ORDER_NOT_FOUND"


class SagaNotFound(NotFound):
    """There is no such saga."""

    reason = "SAGA_NOT_FOUND"


class OutOfStock(Refusal):
    """Fewer are free than were ordered."""

    reason = "OUT_OF_STOCK"

    def __init__(self, short: Iterable[tuple[str, int, int]]) -> None:
        """``short``: for each such product, its id, its free stock and the quantity asked."""
        short = list(short)
        super().__init__(product_id=short[0][0])
        # Short texts: an order has up to 100 products, and a status has to fit into a trailer.
        self.quota = tuple(
            QuotaViolation(f"product:{product_id}", f"{free} free, {asked} asked")
            for product_id, free, asked in short
        )


class OrderNotPayable(Refusal):
    """The order is not waiting for a payment, or its time to pay has passed."""

    reason = "ORDER_NOT_PAYABLE"


class OrderNotCancellable(Refusal):
    """The order has expired: there is nothing left to cancel."""

    reason = "ORDER_NOT_CANCELLABLE"


class PaymentKeyRequired(Refusal):
    """The balance does not pay all that is due, and no payment_key is given for the rest."""

    reason = "PAYMENT_KEY_REQUIRED"


class SagaNotRetryable(Refusal):
    """The saga does not need attention."""

    reason = "SAGA_NOT_RETRYABLE"


class AmountExceedsDue(Refusal):
    """More is to be taken from the balance than is due."""

    code = Code.INVALID_ARGUMENT
    reason = "AMOUNT_EXCEEDS_DUE"


class PaymentInProgress(Refusal):
    """A payment of this order is under way; ask again when it has ended."""

    code = Code.ABORTED
    reason = "PAYMENT_IN_PROGRESS"
    retry_after_s = 1.0


class NotPaid(Refusal):
    """The payment could not be made: nothing is charged, what was taken is put back; try anew."""

    # The reason promises that nothing is charged, whichever service did not answer. No RetryInfo:
    # the refusal is stored, and a new attempt needs a new request_id.
    code = Code.UNAVAILABLE
    reason = "GATEWAY_UNAVAILABLE"


class PaymentOutcomeUnknown(Refusal):
    """Whether the gateway charged was never learnt; a person closed the attempt as not paid."""

    code = Code.UNAVAILABLE
    reason = "PAYMENT_OUTCOME_UNKNOWN"


class CartChanged(Refusal):
    """The cart has changed since the version named; read it and decide anew."""

    code = Code.ABORTED
    reason = "CART_CHANGED"


class SagaLost(Refusal):
    """Another replica has taken the saga over: this one must stop and write nothing more."""

    # Raised inside the service only; no client gets it.
    code = Code.ABORTED
