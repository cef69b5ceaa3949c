"""Carts: each change is a short transaction of its own; the row version detects conflicts.

No lane: two concurrent changes of one cart come from one person, who has to see the conflict.

A replica makes one change of a cart at a time, so that one user takes one connection at most. A
change whose row another transaction holds waits without a connection and tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from common.backoff import Backoff
from common.batching.loader import BatchLoader
from common.db.bulkheads import Bulkhead
from common.db.database import Database
from common.db.repeat import in_transaction
from common.db.statements import Connection
from common.db.transactions import commit_as_a_write
from common.errors import ConflictRetriesExhausted, InvalidField
from common.ids import is_id
from order_service.errors import CartChanged, ProductNotFound
from order_service.model.cart import ITEMS_MAX, Cart, ClearCart, SetCartItem
from order_service.store import cart as store
from order_service.store.product import find_products

WAITING_MAX: Final = 128
"""Changes of one cart that wait in a replica for their turn; more are refused with OVERLOADED."""
TRIES_MAX: Final = 12
"""How often a change finds its row held, in about two seconds, until it is refused."""
_RETRY: Final = Backoff(0.01, 0.25)

_Change = Callable[[Connection], Awaitable[Cart]]
"""Makes a change in a transaction; the cart then. Raises _Unchanged."""


class Carts:
    """The carts of all users."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found = BatchLoader("cart", database, store.find_carts)
        self._turns: dict[str, Bulkhead] = {}
        """The turns of the carts that are being changed, by user."""

    async def close(self) -> None:
        """Wait until no read is running."""
        await self._found.close()

    async def get_cart(self, user_id: str) -> Cart:
        """The cart as last committed; empty and at version 0 if it was never changed."""
        return await self._found.load(user_id)

    async def set_item(self, command: SetCartItem) -> Cart:
        """Set one line. Setting the value that it has changes nothing, not even the version.

        Without an expected version the last writer of a line wins, and other lines stay as they
        are. Raises ProductNotFound, CartChanged, InvalidField if the cart is full, and Overloaded
        if too many changes of this cart, or of all carts, wait.
        """
        if not is_id(command.product_id):
            raise ProductNotFound(product_id=command.product_id)
        return await self._change(command, partial(_set_item, command=command))

    async def clear(self, command: ClearCart) -> Cart:
        """Remove everything. Raises CartChanged or Overloaded."""
        return await self._change(command, partial(_clear, command=command))

    async def _change(self, command: SetCartItem | ClearCart, change: _Change) -> Cart:
        """Make the change when it is its turn.

        Raises DatabaseUnavailable, Overloaded, or ConflictRetriesExhausted if the row stays held,
        or if other replicas change the cart each time.
        """
        async with self._turn(command.user_id):
            for _ in range(TRIES_MAX):
                try:
                    return await self._when_free(command.user_id, change)
                except _Unchanged:
                    cart = await self._unchanged(command.user_id)
                if command.is_done_in(cart):
                    return cart
            raise ConflictRetriesExhausted

    async def _when_free(self, user_id: str, change: _Change) -> Cart:
        """Not repeated once its COMMIT was sent: it would find its own change of the version."""
        tries = 0

        async def work(connection: Connection) -> Cart:
            if tries:
                # The first try waits for another replica's change, for a moment.
                await store.lock(connection, user_id)
            return await change(connection)

        while True:
            try:
                return await in_transaction(self._database, "cart", work, of_call=True)
            except ConflictRetriesExhausted:
                tries += 1
                if tries == TRIES_MAX:
                    raise
            await asyncio.sleep(_RETRY.pause_s(tries))

    async def _unchanged(self, user_id: str) -> Cart:
        """The cart for a command that changed nothing: it confirms what another one wrote."""

        async def confirm(connection: Connection) -> Cart:
            cart = await _read(connection, user_id)
            await commit_as_a_write(connection)
            return cart

        return await in_transaction(self._database, "cart", confirm, idempotent=True, of_call=True)

    @asynccontextmanager
    async def _turn(self, user_id: str) -> AsyncIterator[None]:
        turns = self._turns.setdefault(user_id, Bulkhead("cart", 1, waiting_max=WAITING_MAX))
        try:
            async with turns.place():
                yield
        finally:
            if turns.empty:
                self._turns.pop(user_id, None)


class _Unchanged(Exception):  # noqa: N818 - a state, not a fault
    """The cart has these lines already: its new version is rolled back."""


async def _set_item(connection: Connection, command: SetCartItem) -> Cart:
    [product] = await find_products(connection, [command.product_id])
    if isinstance(product, Exception):
        raise product
    if product is None:
        raise ProductNotFound(product_id=command.product_id)
    await _raise_version(connection, command)
    if not await store.set_item(connection, command.user_id, command.product_id, command.quantity):
        raise _Unchanged
    if await store.count_items(connection, command.user_id) > ITEMS_MAX:
        raise InvalidField("product_id", f"the cart holds {ITEMS_MAX} others")
    return await _read(connection, command.user_id)


async def _read(connection: Connection, user_id: str) -> Cart:
    [cart] = await store.find_carts(connection, [user_id])
    return cart


async def _clear(connection: Connection, command: ClearCart) -> Cart:
    await _raise_version(connection, command)
    if not await store.clear(connection, command.user_id):
        raise _Unchanged
    return await _read(connection, command.user_id)


async def _raise_version(connection: Connection, command: SetCartItem | ClearCart) -> None:
    if not await store.raise_version(connection, command.user_id, command.expected_version):
        raise CartChanged(user_id=command.user_id)
