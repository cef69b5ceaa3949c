"""Orders of seats, as many lines and products as in the orders without."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

from benchmarks.load.clients import Clients
from benchmarks.load.http2 import RESOURCE_EXHAUSTED, CallError
from benchmarks.shop import (
    CREATE_ORDER,
    CREATE_PRODUCT,
    LINES,
    PRICE_MINOR,
    Shop,
    each,
    won,
)
from benchmarks.workloads import Workload
from tally.order.v1 import order_pb2 as order

ADD_SEATS: Final = "/tally.order.v1.ProductService/AddSeats"
LABELS_MAX: Final = 1000
"""Of one AddSeats."""


@dataclass(slots=True)
class _Hall:
    """A product with seats: how many have been added, and how many of these were ordered."""

    product_id: str
    added: int = 0
    ordered: int = 0

    def next_label(self) -> str:
        if self.ordered == self.added:
            raise CallError(RESOURCE_EXHAUSTED, "too few seats were prepared")
        self.ordered += 1
        return str(self.ordered)


def create_order_with_seats(shop: Shop) -> Workload:
    """Orders of one seat each of three products; every seat is ordered once."""
    halls: list[_Hall] = []
    numbers = itertools.count()

    async def open_hall(number: int, clients: Clients) -> None:
        request = order.CreateProductRequest(
            name=f"Hall {number}",
            price=won(PRICE_MINOR),
            stock=0,
            request_id=f"{shop.run}-hall-{number}",
        )
        made = await clients.ask("order", CREATE_PRODUCT, request, order.CreateProductResponse)
        halls.append(_Hall(made.product.product_id))

    async def add_seats(hall: _Hall, free: int, clients: Clients) -> None:
        while (missing := free - (hall.added - hall.ordered)) > 0:
            first, last = hall.added + 1, hall.added + min(missing, LABELS_MAX)
            request = order.AddSeatsRequest(
                product_id=hall.product_id,
                labels=map(str, range(first, last + 1)),
                request_id=f"{shop.run}-{first}-{hall.product_id}",
            )
            await clients.call("order", ADD_SEATS, request.SerializeToString())
            hall.added = last

    async def prepare(clients: Clients, steps: int) -> None:
        if not halls:
            await each(lambda number: open_hall(number, clients), range(shop.size.products))
        # The orders take the products in turn.
        free = math.ceil(steps * LINES / len(halls)) + 1
        await each(lambda number: add_seats(halls[number], free, clients), range(len(halls)))

    async def step(clients: Clients) -> None:
        number, turn = next(shop.numbers), next(numbers)
        chosen = [halls[(turn * LINES + line) % len(halls)] for line in range(LINES)]
        request = order.CreateOrderRequest(
            user_id=shop.user(number),
            request_id=shop.request_id(number),
            items=[
                order.OrderLine(product_id=hall.product_id, quantity=1, seats=[hall.next_label()])
                for hall in chosen
            ],
        )
        await clients.call("order", CREATE_ORDER, request.SerializeToString())

    name = f"CreateOrder, a seat each of {LINES} of {shop.size.products} products"
    return Workload(name, ("order",), step, prepare=prepare)
