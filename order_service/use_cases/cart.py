"""Carts: each change is a short transaction of its own; the row version detects conflicts.

No lane: two concurrent changes of one cart come from one person, who has to see the conflict.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.engines import Database
from common.db.repeat import Work, in_transaction, read
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
        return await read(self._database, lambda connection: store.read_cart(connection, user_id))

    async def set_item(self, command: SetCartItem) -> Cart:
        """Set one line. Setting the value that it has changes nothing, not even the version.

        Without an expected version the last writer of a line wins, and other lines stay as they
        are. Raises ProductNotFound, CartChanged, or InvalidField if the cart is full.
        """
        if not is_id(command.product_id):
            raise ProductNotFound(product_id=command.product_id)

        async def change(connection: AsyncConnection) -> Cart:
            if await read_product(connection, command.product_id) is None:
                raise ProductNotFound(product_id=command.product_id)
            await _raise_version(connection, command)
            if not await store.set_item(
                connection, command.user_id, command.product_id, command.quantity
            ):
                raise _Unchanged
            if await store.count_items(connection, command.user_id) > ITEMS_MAX:
                raise InvalidField("product_id", f"the cart holds {ITEMS_MAX} others")
            return await store.read_cart(connection, command.user_id)

        return await self._changed(command.user_id, change)

    async def clear(self, command: ClearCart) -> Cart:
        """Remove everything. Raises CartChanged."""

        async def change(connection: AsyncConnection) -> Cart:
            await _raise_version(connection, command)
            if not await store.clear(connection, command.user_id):
                raise _Unchanged
            return await store.read_cart(connection, command.user_id)

        return await self._changed(command.user_id, change)

    async def _changed(self, user_id: str, change: Work[Cart]) -> Cart:
        """The cart after ``change``. Raises DatabaseUnavailable or ConflictRetriesExhausted.

        It is not repeated once its COMMIT was sent: it would find its own change of the version.
        """
        try:
            return await in_transaction(self._database, "cart", change)
        except _Unchanged:
            return await self._unchanged(user_id)

    async def _unchanged(self, user_id: str) -> Cart:
        """The cart for a command that changed nothing: it confirms what another one wrote."""

        async def confirm(connection: AsyncConnection) -> Cart:
            cart = await store.read_cart(connection, user_id)
            await commit_as_a_write(connection)
            return cart

        return await in_transaction(self._database, "cart", confirm, idempotent=True)


class _Unchanged(Exception):  # noqa: N818 - a state, not a fault
    """The cart has these lines already: its new version is rolled back."""


async def _raise_version(connection: AsyncConnection, command: SetCartItem | ClearCart) -> None:
    if not await store.raise_version(connection, command.user_id, command.expected_version):
        raise CartChanged(user_id=command.user_id)
