"""What a coupon takes off an order."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import CurrencyMismatch
from common.money import Money
from coupon_service.errors import OrderAmountTooSmall


@dataclass(frozen=True, slots=True)
class Terms:
    """What a coupon takes off an order, in minor units: a fixed amount, or a percentage."""

    currency_code: str | None
    """None: no amount is named, and the percentage is good for any currency."""
    fixed_discount_minor: int | None
    percent_discount: int | None
    max_discount_minor: int | None
    min_order_minor: int | None

    @classmethod
    def of(
        cls,
        *,
        fixed_discount: Money | None = None,
        percent_discount: int | None = None,
        max_discount: Money | None = None,
        min_order_amount: Money | None = None,
    ) -> Terms:
        """Terms whose amounts are all in one currency. Raises CurrencyMismatch."""
        named = [money for money in (fixed_discount, max_discount, min_order_amount) if money]
        currency_code = named[0].currency_code if named else None
        for money in named:
            if money.currency_code != currency_code:
                raise CurrencyMismatch(expected=currency_code or "", got=money.currency_code)
        return cls(
            currency_code,
            fixed_discount.amount_minor if fixed_discount else None,
            percent_discount,
            max_discount.amount_minor if max_discount else None,
            min_order_amount.amount_minor if min_order_amount else None,
        )

    def discount(self, order_amount: Money) -> Money:
        """What is taken off an order: 0 to its amount; a percentage is rounded down.

        Raises CurrencyMismatch or OrderAmountTooSmall.
        """
        if self.currency_code not in (None, order_amount.currency_code):
            raise CurrencyMismatch(expected=self.currency_code, got=order_amount.currency_code)
        amount = order_amount.amount_minor
        if self.min_order_minor is not None and amount < self.min_order_minor:
            raise OrderAmountTooSmall(min_order_amount_minor=str(self.min_order_minor))
        if self.fixed_discount_minor is not None:
            off = self.fixed_discount_minor
        else:
            assert self.percent_discount is not None, "one of the two discounts"
            off = amount * self.percent_discount // 100
        if self.max_discount_minor is not None:
            off = min(off, self.max_discount_minor)
        return Money(order_amount.currency_code, min(off, amount))
