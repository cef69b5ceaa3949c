"""Carts: each change is a short transaction of its own; the row version detects conflicts.

No lane: two concurrent changes of one cart come from one person, who has to see the conflict.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.engines import Database, reading
from common.db.errors import map_database_errors
from common.db.transactions import commit_as_a_write
from common.errors import InvalidField
from common.ids import is_id
from order_service.errors import CartChanged, ProductNotFound
from order_service.model.cart import ITEMS_MAX, Cart, ClearCart, SetCartItem
from order_service.store import cart as store
from order_service.store.product import read_product


class Carts:
    """The carts of all users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_cart(self, user_id: str) -> Cart:
        """The cart as last committed; empty and at version 0 if it was never changed."""
        async with reading(self._database) as connection:
            return await store.read_cart(connection, user_id)

    async def set_item(self, command: SetCartItem) -> Cart:
        """Set one line. Setting the value that it has changes nothing, not even the version.

        Without an expected version the last writer of a line wins, and other lines stay as they
        are. Raises ProductNotFound, CartChanged, or InvalidField if the cart is full.
        """
        if not is_id(command.product_id):
            raise ProductNotFound(product_id=command.product_id)
        async with _writing(self._database) as connection:
            if await read_product(connection, command.product_id) is None:
                raise ProductNotFound(product_id=command.product_id)
            await _raise_version(connection, command)
            if await store.set_item(
                connection, command.user_id, command.product_id, command.quantity
            ):
                if await store.count_items(connection, command.user_id) > ITEMS_MAX:
                    raise InvalidField("product_id", f"the cart holds {ITEMS_MAX} others")
                return await store.read_cart(connection, command.user_id)
            await connection.rollback()
        return await self._unchanged(command.user_id)

    async def clear(self, command: ClearCart) -> Cart:
        """Remove everything. Raises CartChanged."""
        async with _writing(self._database) as connection:
            await _raise_version(connection, command)
            if await store.clear(connection, command.user_id):
                return await store.read_cart(connection, command.user_id)
            await connection.rollback()
        return await self._unchanged(command.user_id)

    async def _unchanged(self, user_id: str) -> Cart:
        """The cart for a command that changed nothing: it confirms what another one wrote."""
        async with _writing(self._database) as connection:
            cart = await store.read_cart(connection, user_id)
            await commit_as_a_write(connection)
            return cart


@asynccontextmanager
async def _writing(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction, committed at the end unless it is rolled back. It is never retried.

    Raises DatabaseUnavailable or ConflictRetriesExhausted.
    """
    with map_database_errors():
        async with database.begin("cart") as connection:
            yield connection


async def _raise_version(connection: AsyncConnection, command: SetCartItem | ClearCart) -> None:
    if not await store.raise_version(connection, command.user_id, command.expected_version):
        raise CartChanged(user_id=command.user_id)
