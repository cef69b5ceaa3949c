"""Products and their stock.

Stock is free, reserved by orders that are not paid yet, or sold. Always
``stocked = free + reserved + sold``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from common.currencies import require_listed
from common.errors import InvalidField
from common.money import Money
from common.request_key import RequestKey, digest_of
from order_service.errors import ProductNotSeated, ProductSeated

STOCK_MAX: Final = 10**12
"""Largest free stock of one product after a restock.

All that was ever stocked is at most this and what orders have reserved or bought. An order takes
10^6 of a product: 64 bits hold what 9 * 10^12 orders buy.
"""
SEATS_MAX: Final = 100_000
"""Seats of one product: about as many as the largest stadium has."""


@dataclass(frozen=True, slots=True)
class CreateProduct:
    """Create a product with an initial stock."""

    name: str
    price: Money
    stock: int
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("CreateProduct", "", self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.name, self.price.currency_code, self.price.amount_minor, self.stock)


@dataclass(frozen=True, slots=True)
class RestockProduct:
    """Add to a product's free stock."""

    product_id: str
    quantity: int
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("RestockProduct", "", self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.product_id, self.quantity)


class StockMove(enum.Enum):
    """What an order's transition does to the stock of its products."""

    RESERVE = "free → reserved"
    RELEASE = "reserved → free"
    SELL = "reserved → sold"
    TAKE_BACK = "sold → free"


class StockEntryKind(enum.StrEnum):
    """Why a product's total stock changed. A further kind, OPENING, is of products that were there
    before the journal; only a migration writes it."""

    CREATED = "CREATED"
    RESTOCKED = "RESTOCKED"
    SEATED = "SEATED"


@dataclass(frozen=True, slots=True)
class StockEntry:
    """One entry of the stock journal, which is append-only and kept for ever."""

    kind: StockEntryKind
    request_id: str
    product_id: str
    quantity: int
    stocked_after: int
    """``Product.stocked`` after the change."""
    product_version: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Product:
    """A product at one version. Its price and name never change."""

    product_id: str
    name: str
    price: Money
    stocked: int
    """All that were ever stocked."""
    reserved: int
    sold: int
    version: int
    create_time: datetime
    update_time: datetime
    seats: int = 0
    """How many seats it has: all that were ever stocked of it, or none."""

    def entry(self, kind: StockEntryKind, quantity: int, request_id: str) -> StockEntry:
        """The journal's entry of the command that led to this version."""
        return StockEntry(
            kind=kind,
            request_id=request_id,
            product_id=self.product_id,
            quantity=quantity,
            stocked_after=self.stocked,
            product_version=self.version,
            create_time=self.update_time,
        )

    @classmethod
    def create(cls, command: CreateProduct, product_id: str, now: datetime) -> Product:
        """A new product; all of its stock is free.

        Raises InvalidField if its currency is not listed.
        """
        require_listed(command.price.currency_code, "price.currency_code")
        return cls(product_id, command.name, command.price, command.stock, 0, 0, 1, now, now)

    @property
    def free(self) -> int:
        return self.stocked - self.reserved - self.sold

    @property
    def seated(self) -> bool:
        """Whether its stock is seats."""
        return self.seats > 0

    def restock(self, quantity: int, now: datetime) -> Product:
        """Add to the free stock.

        Raises ProductSeated if its stock is seats, InvalidField if it would exceed 10^12.
        """
        if self.seated:
            raise ProductSeated(product_id=self.product_id)
        if self.free + quantity > STOCK_MAX:
            raise InvalidField("quantity", f"the stock would exceed {STOCK_MAX}")
        return self._changed(now, stocked=self.stocked + quantity)

    def add_seats(self, count: int, now: datetime) -> Product:
        """Add seats, which are free.

        Raises ProductNotSeated if it has stock that is not seats, InvalidField if it would have
        more than SEATS_MAX.
        """
        if self.stocked != self.seats:
            raise ProductNotSeated(product_id=self.product_id)
        if self.seats + count > SEATS_MAX:
            raise InvalidField("labels", f"the product would have more than {SEATS_MAX} seats")
        return self._changed(now, stocked=self.stocked + count, seats=self.seats + count)

    def move(self, what: StockMove, quantity: int, now: datetime) -> Product:
        """Move some of the stock. The caller has checked that there is enough."""
        if what is StockMove.RESERVE:
            return self._changed(now, reserved=self.reserved + quantity)
        if what is StockMove.RELEASE:
            return self._changed(now, reserved=self.reserved - quantity)
        if what is StockMove.SELL:
            return self._changed(now, reserved=self.reserved - quantity, sold=self.sold + quantity)
        return self._changed(now, sold=self.sold - quantity)

    def _changed(self, now: datetime, **counts: int) -> Product:
        changed = replace(
            self,
            version=self.version + 1,
            # The database's clock may be set back; a product's update_time must not go back.
            update_time=max(self.update_time, now),
            **counts,  # type: ignore[arg-type]  # counts are the integer fields
        )
        assert min(changed.reserved, changed.sold, changed.free) >= 0, "stock is never negative"
        return changed
