"""Products: created and restocked in one lane, and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.lane import Lane
from common.batching.outcomes import RowLocked
from common.db.engines import Database, reading
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.errors import Refusal
from common.ids import is_id, new_id
from common.locking.locks import Locks
from common.paging import Page
from order_service.errors import product_not_found
from order_service.locking import lock_key
from order_service.model.products import CreateProduct, Product, RestockProduct
from order_service.store import products as store
from order_service.tables import answers
from order_service.use_cases import pages

_BODY: Final[TypeAdapter[Product]] = TypeAdapter(Product)

Command = CreateProduct | RestockProduct


@dataclass(frozen=True, slots=True)
class Stocked:
    """What a write did to a product."""

    product: Product
    replayed: bool


class Products:
    """All products, seen from one replica."""

    def __init__(self, database: Database, locks: Locks) -> None:
        self._database = database
        self._answers = IdempotencyStore(answers)
        self.lane: Lane[Command] = Lane("product", database, self._decide, locks, lock_key=lock_key)

    async def write(self, command: Command) -> Stocked:
        """Carry the command out, or replay what it did.

        Raises ProductNotFound, InvalidField, RequestIdReused, ConflictRetriesExhausted,
        DatabaseUnavailable or Overloaded.
        """
        if isinstance(command, RestockProduct) and not is_id(command.product_id):
            raise product_not_found(command.product_id)
        stocked: Stocked = await self.lane.submit(command)
        return stocked

    async def get(self, product_id: str) -> Product:
        """The product as last committed. Raises ProductNotFound."""
        product = None
        if is_id(product_id):
            async with reading(self._database) as connection:
                product = await store.read_product(connection, product_id)
        if product is None:
            raise product_not_found(product_id)
        return product

    async def page_of(self, page: Page) -> tuple[Sequence[Product], str]:
        """A page of all products, newest first, and the next page's token ('' at the end)."""
        before = pages.before(page)
        async with reading(self._database) as connection:
            found = await store.read_products(connection, before=before, size=page.size + 1)
        if len(found) <= page.size:
            return found, ""
        found = found[: page.size]
        return found, page.token(pages.last(found[-1].create_time, found[-1].product_id))

    async def _decide(
        self, connection: AsyncConnection, commands: Sequence[Command], *, wait_for_locks: bool
    ) -> list[Any]:
        """One batch: rows, then answers, then the model, then everything saved."""
        wanted = {command.product_id for command in commands if isinstance(command, RestockProduct)}
        loaded = await store.load(connection, wanted, wait_for_locks=wait_for_locks)
        book = await self._answers.open(connection, [command.key for command in commands])
        now = loaded.now or await store.clock(connection)
        batch = _Batch(loaded, book)
        outcomes = [batch.outcome(command, now) for command in commands]
        if not await store.save(
            connection,
            [(before, loaded.products[product_id]) for product_id, before in batch.changed.items()],
        ):
            raise StaleRead
        await store.add(connection, batch.new)
        await book.save(connection)
        return outcomes


class _Batch:
    """The commands of one transaction against the products loaded for them."""

    def __init__(self, loaded: store.LoadedProducts, book: IdempotencyRecords) -> None:
        self._loaded = loaded
        self._book = book
        self.changed: dict[str, Product] = {}
        """What was restocked, as it was loaded."""
        self.new: list[Product] = []

    def outcome(self, command: Command, now: datetime) -> Stocked | Refusal | RowLocked:
        """Decide one command, in order of arrival."""
        if isinstance(command, RestockProduct) and command.product_id in self._loaded.held:
            return RowLocked(("product", command.product_id))
        try:
            answer = self._book.get(command.key)
            if answer is not None:
                return Stocked(_BODY.validate_json(answer.body_for(command)), replayed=True)
            if isinstance(command, CreateProduct):
                product = Product.create(command, new_id(), now)
                self.new.append(product)
            else:
                product = self._restock(command, now)
        except Refusal as refusal:
            return refusal
        self._book.answer(command, _BODY.dump_json(product).decode())
        return Stocked(product, replayed=False)

    def _restock(self, command: RestockProduct, now: datetime) -> Product:
        before = self._loaded.products.get(command.product_id)
        if before is None:
            raise product_not_found(command.product_id)
        product = before.restock(command.quantity, now)
        self.changed.setdefault(product.product_id, before)
        self._loaded.products[product.product_id] = product
        return product
