"""Orders and the transitions between their states.

An order is a value: each transition returns a new order, one version later. ``TRANSITIONS`` lists
every legal transition, with what it does to the stock of the order's products.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from common.errors import CurrencyMismatch, InvalidField
from common.money import AMOUNT_MAX, Money
from common.request_key import RequestKey, digest_of
from order_service.errors import OrderNotCancellable, OrderNotPayable, PaymentInProgress
from order_service.model.product import Product, StockMove
from order_service.model.seat import ORDER_SEATS_MAX, SeatKey, check_labels


class OrderState(enum.StrEnum):
    """The state of an order."""

    PENDING = "PENDING"
    PAYING = "PAYING"
    PAID = "PAID"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


TRANSITIONS: Final[dict[tuple[OrderState, OrderState], StockMove | None]] = {
    (OrderState.PENDING, OrderState.PAYING): None,
    (OrderState.PENDING, OrderState.CANCELLED): StockMove.RELEASE,
    (OrderState.PENDING, OrderState.EXPIRED): StockMove.RELEASE,
    (OrderState.PAYING, OrderState.PAID): StockMove.SELL,
    (OrderState.PAYING, OrderState.PENDING): None,
    (OrderState.PAYING, OrderState.EXPIRED): StockMove.RELEASE,
    (OrderState.PAYING, OrderState.PAYING): None,
    (OrderState.PAID, OrderState.CANCELLING): None,
    (OrderState.CANCELLING, OrderState.CANCELLED): StockMove.TAKE_BACK,
    (OrderState.CANCELLING, OrderState.CANCELLING): None,
}
"""Every legal transition, and what it does to the stock."""

SETTLED: Final = frozenset({OrderState.PAID, OrderState.CANCELLED, OrderState.EXPIRED})
"""States that an order does not leave by itself."""


class IllegalTransition(Exception):  # noqa: N818 - a defect of the caller; no client gets it
    """The order cannot make this transition: the caller did not check its state first."""


@dataclass(frozen=True, slots=True)
class Line:
    """A product and a quantity of it, and the labels of its seats if it has some."""

    product_id: str
    quantity: int
    seats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateOrder:
    """Create an order: reserve the stock of every line at its current price."""

    user_id: str
    lines: tuple[Line, ...]
    request_id: str
    is_limited: bool = True
    """Whether the user's limit of open orders applies; not part of the request's content."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("CreateOrder", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        # The order of the lines is not content.
        content: list[str | int] = []
        for line in sorted(self.lines, key=lambda line: line.product_id):
            # A label cannot be taken for the next line's product_id, which is longer.
            content += [line.product_id, line.quantity, *sorted(line.seats)]
        return digest_of(*content)

    @property
    def seats(self) -> list[SeatKey]:
        """The seats of all lines."""
        return seats_of(self.lines)

    def check_seats(self) -> None:
        """Raise InvalidField unless each line names no seats, or as many as it orders."""
        for number, line in enumerate(self.lines):
            field = f"items[{number}].seats"
            check_labels(line.seats, field)
            if line.seats and len(line.seats) != line.quantity:
                raise InvalidField(field, "must be as many as quantity")
        if len(self.seats) > ORDER_SEATS_MAX:
            raise InvalidField("items", f"must have at most {ORDER_SEATS_MAX} seats")


@dataclass(frozen=True, slots=True)
class PayOrder:
    """Begin to pay a pending order, with a saga."""

    order_id: str
    user_id: str
    coupon_id: str | None
    balance_amount: Money | None
    payment_key: str | None
    request_id: str
    saga_id: str = ""
    """The saga that this call begins, if it begins one; not part of the request's content."""
    has_capacity: bool = True
    """Whether this replica can run one more saga. If not, only a repetition is answered."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("PayOrder", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        amount = self.balance_amount
        return digest_of(
            self.order_id,
            self.coupon_id,
            None if amount is None else amount.currency_code,
            None if amount is None else amount.amount_minor,
            self.payment_key,
        )


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Cancel an order: a pending one at once, a paid one with a saga that gives everything back."""

    order_id: str
    user_id: str
    reason: str
    request_id: str
    saga_id: str = ""
    """The saga that this call begins, if it begins one; not part of the request's content."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("CancelOrder", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.order_id, self.reason)


@dataclass(frozen=True, slots=True)
class ExpireOrder:
    """Expire an order whose time has passed, and release its stock. No client calls it."""

    order_id: str


@dataclass(frozen=True, slots=True)
class Item:
    """One line of an order, at the price when it was ordered."""

    product_id: str
    quantity: int
    unit_price_minor: int
    seats: tuple[str, ...] = ()
    """The labels of its seats, ascending."""

    @property
    def amount_minor(self) -> int:
        return self.unit_price_minor * self.quantity


@dataclass(frozen=True, slots=True)
class Order:
    """An order at one version. All amounts are minor units of ``currency_code``."""

    order_id: str
    user_id: str
    request_id: str
    """The request_id of its CreateOrder call."""
    currency_code: str
    items: tuple[Item, ...]
    """By ascending product_id."""
    subtotal_minor: int
    discount_minor: int
    paid_by_balance_minor: int
    paid_by_gateway_minor: int
    coupon_id: str | None
    payment_id: str | None
    state: OrderState
    failure_reason: str
    version: int
    create_time: datetime
    expire_time: datetime
    update_time: datetime

    @classmethod
    def create(
        cls,
        command: CreateOrder,
        order_id: str,
        products: Sequence[Product],
        *,
        now: datetime,
        expiry: timedelta,
    ) -> Order:
        """A new order. ``products`` are those of the command's lines, in the same order.

        Raises CurrencyMismatch if the products are not all in one currency, InvalidField naming
        items if a line or the sum exceeds 10^15.
        """
        currency_code = products[0].price.currency_code
        for product in products:
            if product.price.currency_code != currency_code:
                raise CurrencyMismatch(
                    expected=currency_code,
                    got=product.price.currency_code,
                    product_id=product.product_id,
                )
        items = [
            Item(
                line.product_id,
                line.quantity,
                product.price.amount_minor,
                tuple(sorted(line.seats)),
            )
            for line, product in zip(command.lines, products, strict=True)
        ]
        subtotal_minor = sum(item.amount_minor for item in items)
        if subtotal_minor > AMOUNT_MAX:
            raise InvalidField("items", f"the sum exceeds {AMOUNT_MAX} minor units")
        return cls(
            order_id=order_id,
            user_id=command.user_id,
            request_id=command.request_id,
            currency_code=currency_code,
            items=tuple(sorted(items, key=lambda item: item.product_id)),
            subtotal_minor=subtotal_minor,
            discount_minor=0,
            paid_by_balance_minor=0,
            paid_by_gateway_minor=0,
            coupon_id=None,
            payment_id=None,
            state=OrderState.PENDING,
            failure_reason="",
            version=1,
            create_time=now,
            expire_time=now + expiry,
            update_time=now,
        )

    @property
    def total_minor(self) -> int:
        """The amount to pay, or paid."""
        return self.subtotal_minor - self.discount_minor

    @property
    def product_ids(self) -> list[str]:
        return [item.product_id for item in self.items]

    @property
    def seats(self) -> list[SeatKey]:
        """The seats of all lines."""
        return seats_of(self.items)

    def begin_payment(self, now: datetime, *, coupon_id: str | None = None) -> Order:
        """PENDING → PAYING, while its time has not passed.

        Raises PaymentInProgress if it is PAYING, OrderNotPayable in every other case.
        """
        if self.state is OrderState.PAYING:
            raise PaymentInProgress(order_id=self.order_id)
        if self.state is not OrderState.PENDING or now >= self.expire_time:
            raise OrderNotPayable(order_id=self.order_id, state=self.state.value)
        paying = replace(self, coupon_id=coupon_id, failure_reason="")
        return _transition(paying, OrderState.PAYING, now)

    def complete_payment(
        self,
        now: datetime,
        *,
        discount_minor: int = 0,
        paid_by_balance_minor: int = 0,
        paid_by_gateway_minor: int = 0,
        coupon_id: str | None = None,
        payment_id: str | None = None,
    ) -> Order:
        """PAYING → PAID. The sum of the payments must be the subtotal less the discount."""
        assert 0 <= discount_minor <= self.subtotal_minor, "discount beyond the subtotal"
        assert min(paid_by_balance_minor, paid_by_gateway_minor) >= 0, "a payment is not negative"
        paid_minor = paid_by_balance_minor + paid_by_gateway_minor
        assert paid_minor == self.subtotal_minor - discount_minor, "paid is not what was due"
        paid = replace(
            self,
            discount_minor=discount_minor,
            paid_by_balance_minor=paid_by_balance_minor,
            paid_by_gateway_minor=paid_by_gateway_minor,
            coupon_id=coupon_id,
            payment_id=payment_id,
        )
        return _transition(paid, OrderState.PAID, now)

    def return_to_pending(self, failure_reason: str, now: datetime) -> Order:
        """PAYING → PENDING after compensation, or → EXPIRED if the order's time has passed."""
        if self.state is not OrderState.PAYING:
            raise IllegalTransition(f"{self.state} → back to PENDING")
        to = OrderState.EXPIRED if now >= self.expire_time else OrderState.PENDING
        return _transition(replace(self, coupon_id=None, failure_reason=failure_reason), to, now)

    def cancel(self, reason: str, now: datetime) -> Order:
        """PENDING → CANCELLED.

        Raises PaymentInProgress if it is PAYING, OrderNotCancellable if it is EXPIRED.
        """
        if self.state is OrderState.PAYING:
            raise PaymentInProgress(order_id=self.order_id)
        if self.state is OrderState.EXPIRED:
            raise OrderNotCancellable(order_id=self.order_id, state=self.state.value)
        if self.state is not OrderState.PENDING:
            raise IllegalTransition(f"{self.state} → CANCELLED at once")
        return _transition(replace(self, failure_reason=reason), OrderState.CANCELLED, now)

    def begin_cancel(self, reason: str, now: datetime) -> Order:
        """PAID → CANCELLING: from here the cancellation can only go forward."""
        if self.state is not OrderState.PAID:
            raise IllegalTransition(f"{self.state} → CANCELLING")
        return _transition(replace(self, failure_reason=reason), OrderState.CANCELLING, now)

    def complete_cancel(self, reason: str, now: datetime) -> Order:
        """CANCELLING → CANCELLED: everything has been given back, or is certain to be."""
        if self.state is not OrderState.CANCELLING:
            raise IllegalTransition(f"{self.state} → CANCELLED after a cancellation")
        return _transition(replace(self, failure_reason=reason), OrderState.CANCELLED, now)

    def note_failure(self, reason: str, now: datetime) -> Order:
        """The same state, with the reason why it does not leave it: a refund that is refused."""
        return _transition(replace(self, failure_reason=reason), self.state, now)

    def is_due(self, now: datetime) -> bool:
        """Whether the order has to expire. A PAYING order never expires."""
        return self.state is OrderState.PENDING and now >= self.expire_time

    def expire(self, now: datetime) -> Order:
        """PENDING → EXPIRED. Check ``is_due`` first."""
        if not self.is_due(now):
            raise IllegalTransition(f"{self.state} until {self.expire_time} → EXPIRED at {now}")
        return _transition(self, OrderState.EXPIRED, now)


def seats_of(lines: Iterable[Line | Item]) -> list[SeatKey]:
    """The seats that lines name."""
    return [SeatKey(line.product_id, label) for line in lines for label in line.seats]


def _transition(order: Order, state: OrderState, now: datetime) -> Order:
    if (order.state, state) not in TRANSITIONS:
        raise IllegalTransition(f"{order.state} → {state}")
    return replace(
        order,
        state=state,
        version=order.version + 1,
        # The database's clock may be set back; an order's update_time must not go back.
        update_time=max(order.update_time, now),
    )
