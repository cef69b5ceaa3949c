"""Seated products for tests, and requests about seats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, fresh

STATES: Final = {number: name.removeprefix("STATE_") for name, number in pb.Seat.State.items()}


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
