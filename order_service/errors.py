"""The refusals of the order service; one without a code is FAILED_PRECONDITION."""

from __future__ import annotations

from collections.abc import Iterable

from common.errors import Code, NotFound, QuotaViolation, Refusal


class ProductNotFound(NotFound, reason="PRODUCT_NOT_FOUND"):
    """There is no product with this id."""


class OrderNotFound(NotFound, reason="ORDER_NOT_FOUND"):
    """This user has no order with this id."""


class SagaNotFound(NotFound, reason="SAGA_NOT_FOUND"):
    """There is no such saga."""


class OutOfStock(Refusal, reason="OUT_OF_STOCK"):
    """Fewer are free than were ordered."""

    def __init__(self, short: Iterable[tuple[str, int, int]]) -> None:
        """``short``: for each such product, its id, its free stock and the quantity asked."""
        short = list(short)
        super().__init__(product_id=short[0][0])
        # Short texts: an order has up to 100 products, and a status has to fit into a trailer.
        self.quota = tuple(
            QuotaViolation(f"product:{product_id}", f"{free} free, {asked} asked")
            for product_id, free, asked in short
        )


class OrderNotPayable(Refusal, reason="ORDER_NOT_PAYABLE"):
    """The order is not waiting for a payment, or its time to pay has passed."""


class OrderNotCancellable(Refusal, reason="ORDER_NOT_CANCELLABLE"):
    """The order has expired: there is nothing left to cancel."""


class PaymentKeyRequired(Refusal, reason="PAYMENT_KEY_REQUIRED"):
    """The balance does not pay all that is due, and no payment_key is given for the rest."""


class SagaNotRetryable(Refusal, reason="SAGA_NOT_RETRYABLE"):
    """The saga has ended, or does not need attention, or has a step that cannot be undone."""


class AmountExceedsDue(Refusal, code=Code.INVALID_ARGUMENT, reason="AMOUNT_EXCEEDS_DUE"):
    """More is to be taken from the balance than is due."""


class PaymentInProgress(
    Refusal, code=Code.ABORTED, reason="PAYMENT_IN_PROGRESS", retry_after_s=1.0
):
    """A payment of this order is under way; ask again when it has ended."""


class NotPaid(Refusal, code=Code.UNAVAILABLE, reason="GATEWAY_UNAVAILABLE"):
    """The payment could not be made: nothing is charged, what was taken is put back; try anew."""

    # The reason promises that nothing is charged, whichever service did not answer. No RetryInfo:
    # the refusal is stored, and a new attempt needs a new request_id.


class PaymentOutcomeUnknown(Refusal, code=Code.UNAVAILABLE, reason="PAYMENT_OUTCOME_UNKNOWN"):
    """A person closed the attempt; what it took is certain to be put back."""


class CartChanged(Refusal, code=Code.ABORTED, reason="CART_CHANGED"):
    """The cart has changed since the version named; read it and decide anew."""


class SagaLost(Refusal, code=Code.ABORTED):
    """Another replica has taken the saga over: this one must stop and write nothing more."""

    # Raised inside the service only; no client gets it.
