"""The refusals of the order service; one without a code is FAILED_PRECONDITION."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from common.errors import Code, FieldViolation, NotFound, QuotaViolation, Refusal


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


class OpenOrdersLimit(Refusal, reason="OPEN_ORDERS_LIMIT"):
    """The user has as many orders waiting for their payment as one may have."""

    def __init__(self, user_id: str, *, open_orders: int, most: int) -> None:
        super().__init__(user_id=user_id)
        figures = f"{open_orders} orders are open, {most} may be"
        self.quota = (QuotaViolation(f"orders:{user_id}", figures),)


class ProductSeated(Refusal, reason="PRODUCT_SEATED"):
    """The product has seats: order them by their labels, and add stock by adding seats."""


class ProductNotSeated(Refusal, reason="PRODUCT_NOT_SEATED"):
    """The product has stock that is not seats: give seats to a product created with stock 0."""


class SeatsNotNamed(ProductSeated):
    """The product has seats, and the line does not name those that it orders."""

    def __init__(self, product_id: str, field: str) -> None:
        """``field``: the path of the line's seats."""
        super().__init__(product_id=product_id)
        self.fields = (FieldViolation(field, "must name the seats"),)


class SeatsNamed(ProductNotSeated):
    """The line names seats of a product that has none."""

    def __init__(self, product_id: str, field: str) -> None:
        """``field``: the path of the line's seats."""
        super().__init__(product_id=product_id)
        self.fields = (FieldViolation(field, "must be empty: the product has no seats"),)


class SeatNotFound(NotFound, reason="SEAT_NOT_FOUND"):
    """The product has no seat with this label."""

    def __init__(self, product_id: str, fields: Iterable[str]) -> None:
        """``fields``: the paths of the labels."""
        super().__init__(product_id=product_id)
        self.fields = tuple(FieldViolation(field, "no such seat") for field in fields)


class SeatTaken(Refusal, reason="SEAT_TAKEN"):
    """A seat is taken, and an order gets all of its seats or none."""

    def __init__(self, product_id: str, taken: Iterable[tuple[int, str]]) -> None:
        """``product_id``: of the first one; ``taken``: line and label of each."""
        super().__init__(product_id=product_id)
        # Not the product_id of each: with the longest labels of 100 products the status would not
        # fit into a trailer.
        self.quota = tuple(
            QuotaViolation(f"items[{line}]:{label}", "taken") for line, label in taken
        )


class SeatExists(Refusal, code=Code.ALREADY_EXISTS, reason="SEAT_EXISTS"):
    """The product has some of these seats; none was added."""

    def __init__(self, product_id: str, existing: Mapping[int, str]) -> None:
        """``existing``: the labels, by their position in the request."""
        super().__init__(product_id=product_id)
        if len(existing) <= LABELS_NAMED_MAX:
            self.quota = tuple(QuotaViolation(label, "exists") for label in existing.values())
        else:
            self.quota = tuple(QuotaViolation("labels", text) for text in _ranges(existing))


LABELS_NAMED_MAX: Final = 100
_RANGES_CHARS_MAX: Final = 110
"""Positions of labels in one description, which a status cuts at 120 bytes."""


def _ranges(positions: Iterable[int]) -> Iterator[str]:
    """The positions as texts such as "0-41,43", ascending, none too long for a description."""
    runs: list[tuple[int, int]] = []
    for position in sorted(positions):
        if runs and runs[-1][1] == position - 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    text = ""
    for first, last in runs:
        run = str(first) if first == last else f"{first}-{last}"
        if len(text) + len(run) >= _RANGES_CHARS_MAX:
            yield text
            text = ""
        text = f"{text},{run}" if text else run
    yield text


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
