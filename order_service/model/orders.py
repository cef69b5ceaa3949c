"""Orders and the moves between their states. Pure: no I/O, no clock, nothing asynchronous.

An order is a value: each move gives a new one, one version later. Which moves there are, and what
each does to the stock of the order's products, stands in one table, ``MOVES``.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from common.errors import CurrencyMismatch, InvalidField
from common.money import AMOUNT_MAX, Money
from common.request_key import RequestKey, digest_of
from order_service.errors import OrderNotCancellable, OrderNotPayable, PaymentInProgress
from order_service.model.products import Product, StockMove


class State(enum.StrEnum):
    """Where an order stands."""

    PENDING = "PENDING"
    PAYING = "PAYING"
    PAID = "PAID"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


MOVES: Final[dict[tuple[State, State], StockMove | None]] = {
    (State.PENDING, State.PAYING): None,
    (State.PENDING, State.CANCELLED): StockMove.RELEASE,
    (State.PENDING, State.EXPIRED): StockMove.RELEASE,
    (State.PAYING, State.PAID): StockMove.SELL,
    (State.PAYING, State.PENDING): None,
    (State.PAYING, State.EXPIRED): StockMove.RELEASE,
    (State.PAID, State.CANCELLING): None,
    (State.CANCELLING, State.CANCELLED): StockMove.TAKE_BACK,
}
"""Every legal move, and what becomes of the stock."""

AT_REST: Final = frozenset({State.PAID, State.CANCELLED, State.EXPIRED})
"""States from which nothing moves by itself."""


class IllegalMove(Exception):  # noqa: N818 - a defect of the caller, never told to a client
    """This order cannot make this move: the caller did not look at its state first."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is ordered of one product."""

    product_id: str
    quantity: int


@dataclass(frozen=True, slots=True)
class CreateOrder:
    """Reserve the stock of every line at the prices of this moment."""

    user_id: str
    lines: tuple[Line, ...]
    request_id: str

    order_id = None
    """It has none yet."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("CreateOrder", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        # The lines are a set: their order is not content.
        content: list[str | int] = []
        for line in sorted(self.lines, key=lambda line: line.product_id):
            content += [line.product_id, line.quantity]
        return digest_of(*content)


@dataclass(frozen=True, slots=True)
class PayOrder:
    """Pay a pending order."""

    order_id: str
    user_id: str
    coupon_id: str | None
    balance_amount: Money | None
    payment_key: str | None
    request_id: str

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
    """Cancel an order and give everything back, once."""

    order_id: str
    user_id: str
    reason: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("CancelOrder", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.order_id, self.reason)


@dataclass(frozen=True, slots=True)
class ExpireOrder:
    """Give the stock of an order back whose time has passed. Nobody asks for it by name."""

    order_id: str


@dataclass(frozen=True, slots=True)
class Item:
    """One line of an order, at the price of the moment it was ordered."""

    product_id: str
    quantity: int
    unit_price_minor: int

    @property
    def amount_minor(self) -> int:
        return self.unit_price_minor * self.quantity


@dataclass(frozen=True, slots=True)
class Order:
    """An order at one version. All amounts are minor units of ``currency_code``."""

    order_id: str
    user_id: str
    request_id: str
    """Of the CreateOrder that made it."""
    currency_code: str
    items: tuple[Item, ...]
    """By ascending product_id."""
    subtotal_minor: int
    discount_minor: int
    paid_by_balance_minor: int
    paid_by_gateway_minor: int
    coupon_id: str | None
    payment_id: str | None
    state: State
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
        """A new order of these products, which are the command's lines' in their order.

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
            Item(line.product_id, line.quantity, product.price.amount_minor)
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
            state=State.PENDING,
            failure_reason="",
            version=1,
            create_time=now,
            expire_time=now + expiry,
            update_time=now,
        )

    @property
    def total_minor(self) -> int:
        """What is to be paid, or was."""
        return self.subtotal_minor - self.discount_minor

    @property
    def product_ids(self) -> list[str]:
        return [item.product_id for item in self.items]

    def begin_payment(self, now: datetime, *, coupon_id: str | None = None) -> Order:
        """PENDING → PAYING, while its time has not passed.

        Raises PaymentInProgress if it is PAYING, OrderNotPayable in every other case.
        """
        if self.state is State.PAYING:
            raise PaymentInProgress(order_id=self.order_id)
        if self.state is not State.PENDING or now >= self.expire_time:
            raise OrderNotPayable(order_id=self.order_id, state=self.state.value)
        return self._moved(State.PAYING, now, coupon_id=coupon_id, failure_reason="")

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
        """PAYING → PAID. What was paid must be exactly the subtotal less the discount."""
        assert 0 <= discount_minor <= self.subtotal_minor, "discount beyond the subtotal"
        assert min(paid_by_balance_minor, paid_by_gateway_minor) >= 0, "a payment is not negative"
        paid_minor = paid_by_balance_minor + paid_by_gateway_minor
        assert paid_minor == self.subtotal_minor - discount_minor, "paid is not what was due"
        return self._moved(
            State.PAID,
            now,
            discount_minor=discount_minor,
            paid_by_balance_minor=paid_by_balance_minor,
            paid_by_gateway_minor=paid_by_gateway_minor,
            coupon_id=coupon_id,
            payment_id=payment_id,
        )

    def return_to_pending(self, failure_reason: str, now: datetime) -> Order:
        """PAYING → PENDING: the attempt failed and is undone. → EXPIRED if its time has passed."""
        if self.state is not State.PAYING:
            raise IllegalMove(f"{self.state} → back to PENDING")
        to = State.EXPIRED if now >= self.expire_time else State.PENDING
        return self._moved(to, now, coupon_id=None, failure_reason=failure_reason)

    def cancel(self, reason: str, now: datetime) -> Order:
        """PENDING → CANCELLED.

        Raises PaymentInProgress if it is PAYING, OrderNotCancellable if it is EXPIRED.
        """
        if self.state is State.PAYING:
            raise PaymentInProgress(order_id=self.order_id)
        if self.state is State.EXPIRED:
            raise OrderNotCancellable(order_id=self.order_id, state=self.state.value)
        if self.state is not State.PENDING:
            raise IllegalMove(f"{self.state} → CANCELLED at once")
        return self._moved(State.CANCELLED, now, failure_reason=reason)

    def begin_cancel(self, reason: str, now: datetime) -> Order:
        """PAID → CANCELLING: from here only forward."""
        return self._moved(State.CANCELLING, now, failure_reason=reason)

    def complete_cancel(self, now: datetime) -> Order:
        """CANCELLING → CANCELLED: everything has been given back."""
        if self.state is not State.CANCELLING:
            raise IllegalMove(f"{self.state} → CANCELLED after a cancellation")
        return self._moved(State.CANCELLED, now)

    def is_due(self, now: datetime) -> bool:
        """Whether it is to expire. A PAYING order never is."""
        return self.state is State.PENDING and now >= self.expire_time

    def expire(self, now: datetime) -> Order:
        """PENDING → EXPIRED. Ask ``is_due`` first."""
        if not self.is_due(now):
            raise IllegalMove(f"{self.state} until {self.expire_time} → EXPIRED at {now}")
        return self._moved(State.EXPIRED, now)

    def _moved(self, to: State, now: datetime, **changes: Any) -> Order:
        if (self.state, to) not in MOVES:
            raise IllegalMove(f"{self.state} → {to}")
        return replace(
            self,
            state=to,
            version=self.version + 1,
            # The database's clock may be set back; an order's history is not.
            update_time=max(self.update_time, now),
            **changes,
        )
