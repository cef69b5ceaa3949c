"""Carts, one per user."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from order_service.model.order import Line

ITEMS_MAX: Final = 100
"""As many products as one order can have."""


@dataclass(frozen=True, slots=True)
class SetCartItem:
    """Set the quantity of a product in the cart; 0 removes the product."""

    user_id: str
    product_id: str
    quantity: int
    expected_version: int | None

    def is_done_in(self, cart: Cart) -> bool:
        """Whether this change leaves the cart as it is."""
        found = (line.quantity for line in cart.lines if line.product_id == self.product_id)
        as_expected = self.expected_version in {None, cart.version}
        return as_expected and next(found, 0) == self.quantity


@dataclass(frozen=True, slots=True)
class ClearCart:
    """Remove everything from the cart."""

    user_id: str
    expected_version: int | None

    def is_done_in(self, cart: Cart) -> bool:
        """Whether this change leaves the cart as it is."""
        return self.expected_version in {None, cart.version} and not cart.lines


@dataclass(frozen=True, slots=True)
class Cart:
    """A user's cart at one version. Version 0 was never changed and has no time."""

    user_id: str
    lines: tuple[Line, ...]
    version: int
    update_time: datetime | None
