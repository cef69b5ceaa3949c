"""Carts, one to a user. Pure: no I/O, no clock, nothing asynchronous."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from order_service.model.orders import Line

ITEMS_MAX: Final = 100
"""As many products as one order can have."""


@dataclass(frozen=True, slots=True)
class SetCartItem:
    """Set how many of a product are in the cart; 0 takes it out."""

    user_id: str
    product_id: str
    quantity: int
    expected_version: int | None


@dataclass(frozen=True, slots=True)
class ClearCart:
    """Take everything out of the cart."""

    user_id: str
    expected_version: int | None


@dataclass(frozen=True, slots=True)
class Cart:
    """A user's cart at one version; version 0 was never touched and has no time."""

    user_id: str
    lines: tuple[Line, ...]
    version: int
    update_time: datetime | None
