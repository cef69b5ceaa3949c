"""Seated products for tests, and requests about seats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest
import sqlalchemy as sa

from common.db.unnest import same
from order_service import tables
from order_service.model.seat import SeatKey
from order_service.store import seat as seat_store
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, fresh

STATES: Final = {number: name.removeprefix("STATE_") for name, number in pb.Seat.State.items()}


@dataclass
class SeatMap:
    """What a client of WatchSeats knows."""

    states: dict[str, str] = field(default_factory=dict)
    version: int = 0

    def add(self, message: pb.WatchSeatsResponse) -> None:
        self.states |= {seat.label: STATES[seat.state] for seat in message.seats}
        self.version = message.version or self.version


def labels(count: int, prefix: str = "A") -> list[str]:
    """As many labels, in ascending order."""
    return [f"{prefix}-{number:04}" for number in range(count)]


def add_seats(product_id: str, of: Sequence[str], request_id: str) -> pb.AddSeatsRequest:
    return pb.AddSeatsRequest(product_id=product_id, labels=of, request_id=request_id)


async def seated(shop: Shop, of: Sequence[str], *, price: int = 100) -> str:
    """A new product with these seats."""
    product_id = await shop.product(0, price=price)
    await shop.products.AddSeats(add_seats(product_id, of, fresh("seated")))
    return product_id


def order_seats(
    user_id: str, lines: Mapping[str, Iterable[str]], request_id: str = ""
) -> pb.CreateOrderRequest:
    """An order of the seats of each product."""
    items = []
    for product_id, of in lines.items():
        seats = list(of)
        items.append(pb.OrderLine(product_id=product_id, quantity=len(seats), seats=seats))
    return pb.CreateOrderRequest(user_id=user_id, items=items, request_id=request_id or fresh("o"))


def forget_seat_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write seats whatever has become of them since they were read."""
    changed = seat_store._changed
    monkeypatch.setattr(
        seat_store,
        "_SAVE",
        sa.update(tables.seats)
        .values({name: changed.c[name] for name in ("state", "order_id", "version")})
        .where(same(tables.seats, changed, SeatKey._fields)),
    )


async def seat_map(shop: Shop, product_id: str) -> dict[str, str]:
    """The state of each seat, by label."""
    found: dict[str, str] = {}
    request = pb.ListSeatsRequest(product_id=product_id, page_size=500)
    while True:
        response = await shop.seats.ListSeats(request)
        found |= {seat.label: STATES[seat.state] for seat in response.seats}
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token
