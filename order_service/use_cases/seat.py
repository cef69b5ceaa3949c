"""Seats: which of them an order may have, the read before any lock, and the list."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import structlog

from common.breaker import CircuitBreaker, CircuitOpen
from common.db.database import Database
from common.db.errors import failure_of
from common.db.idempotency import IdempotencyStore
from common.db.repeat import read
from common.db.statements import Connection
from common.errors import InvalidPageToken, Refusal
from common.paging import Found, Page
from order_service.errors import SeatNotFound, SeatsNamed, SeatsNotNamed, SeatTaken
from order_service.model.order import CreateOrder
from order_service.model.product import Product
from order_service.model.seat import Seat, SeatKey, SeatState, is_label
from order_service.store import seat as store
from order_service.use_cases.product import Products

READ_S: Final = 0.1
"""How long a batch waits for the read without locks, as for Redis: it only saves work."""
PAUSE_S: Final = 1.0
"""How long the read is left out after one that failed: each batch would wait for it again."""

_log = structlog.stdlib.get_logger()


class Seats:
    """The seats of all products, as one replica reads them."""

    def __init__(self, database: Database, products: Products) -> None:
        self._database = database
        self._products = products

    async def list_seats(self, product_id: str, state: SeatState | None, page: Page) -> Found[Seat]:
        """A page of the product's seats, by label. Raises ProductNotFound or InvalidPageToken."""
        if page.after is not None and not is_label(str(page.after[0])):
            raise InvalidPageToken
        await self._products.get_product(product_id)
        found = await read(
            self._database, lambda connection: store.read_seats(connection, product_id, state, page)
        )
        return Found(page, found, lambda seat: (seat.label,))


class TakenSeats:
    """Refuses orders for taken seats by a read without locks, before their batch begins.

    Most of those who want a popular seat come too late: they take no lock and no place in a
    transaction. What this read finds free may be taken a moment later; the transaction decides.
    """

    def __init__(self, database: Database, idempotency: IdempotencyStore) -> None:
        self._database = database
        self._idempotency = idempotency
        self._breaker = CircuitBreaker("taken_seats", failures_max=1, open_s=PAUSE_S)

    async def __call__(self, commands: Sequence[object]) -> Mapping[int, Refusal]:
        """The refusals, by the commands' positions. No statement if no command names seats.

        A read that fails refuses nothing, and for a while none is made.
        """
        orders = {
            position: one
            for position, one in enumerate(commands)
            if isinstance(one, CreateOrder) and one.seats
        }
        if not orders:
            return {}
        try:
            async with self._breaker.call(), asyncio.timeout(READ_S):
                return await read(self._database, lambda connection: self._read(connection, orders))
        except CircuitOpen:
            return {}
        except Exception as error:  # noqa: BLE001 - the batch may have other commands too
            _log.warning("taken_seats_not_read", error=failure_of(error))
            return {}  # the transaction finds out

    async def _read(
        self, connection: Connection, orders: Mapping[int, CreateOrder]
    ) -> dict[int, Refusal]:
        named = {key for one in orders.values() for key in one.seats}
        taken = await store.find_taken(connection, named)
        refusals = {
            position: refusal
            for position, one in orders.items()
            if (refusal := _refusal(one, taken)) is not None
        }
        if not refusals:
            return {}
        # Read after the seats: if this very request has taken them, its answer is there.
        records = await self._idempotency.load(connection, [orders[at].key for at in refusals])
        return {at: one for at, one in refusals.items() if records.get(orders[at].key) is None}


def require_seats(
    command: CreateOrder, products: Sequence[Product], seats: Mapping[SeatKey, Seat]
) -> None:
    """Raise unless all seats of the order are free. ``products``: of the lines, in their order.

    Raises SeatsNotNamed, SeatsNamed, SeatNotFound or SeatTaken.
    """
    for number, (line, product) in enumerate(zip(command.lines, products, strict=True)):
        if product.seated and not line.seats:
            raise SeatsNotNamed(line.product_id, f"items[{number}].seats")
        if line.seats and not product.seated:
            raise SeatsNamed(line.product_id, f"items[{number}].seats")
    missing = [
        (key.product_id, f"items[{number}].seats[{place}]")
        for number, place, key in _places(command)
        if key not in seats
    ]
    if missing:
        raise SeatNotFound(missing[0][0], (field for _, field in missing))
    taken = {key for key in command.seats if not seats[key].free}
    if (refusal := _refusal(command, taken)) is not None:
        raise refusal


def _refusal(command: CreateOrder, taken: AbstractSet[SeatKey]) -> SeatTaken | None:
    """The refusal that names every taken seat of the order, if there is one."""
    found = [(number, key) for number, _, key in _places(command) if key in taken]
    if not found:
        return None
    return SeatTaken(found[0][1].product_id, ((number, key.label) for number, key in found))


def _places(command: CreateOrder) -> Iterator[tuple[int, int, SeatKey]]:
    """Each seat of the order, with its line and its place in the line."""
    for number, line in enumerate(command.lines):
        for place, label in enumerate(line.seats):
            yield number, place, SeatKey(line.product_id, label)
