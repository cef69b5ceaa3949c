"""Products: create, restock, read and list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from pydantic import TypeAdapter

from common.batching.decider import Decider
from common.batching.lane import Lane
from common.batching.loader import BatchLoader, load_by_id
from common.batching.outcomes import RowLocked, VersionConflict
from common.db.database import Database
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read
from common.db.row_locks import read_clock
from common.db.statements import Connection
from common.errors import Refusal, RequestIdReused
from common.ids import is_id, new_id
from common.locking.locks import Locks
from common.paging import Found, Page, TimePosition
from common.request_key import RequestKey, Result
from order_service.errors import ProductNotFound
from order_service.locking import STRATEGIES
from order_service.model.product import CreateProduct, Product, RestockProduct, StockEntry
from order_service.store import product as store
from order_service.tables import STOCK_ENTRY_ONCE
from order_service.use_cases.product_cache import ProductCache

ProductCommand: TypeAlias = CreateProduct | RestockProduct

_BODY: Final[TypeAdapter[Product]] = TypeAdapter(Product)


class Products:
    """All products, as one replica writes and reads them."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        idempotency: IdempotencyStore,
        *,
        cache_s: float = 0.0,
    ) -> None:
        """``cache_s``: how old what is read may be; 0: not at all."""
        self._database = database
        self._cache = ProductCache(cache_s)
        self._found = BatchLoader("product", database, store.find_products)
        self.lane: Lane[ProductCommand, Result[Product]] = Lane(
            "product", database, _Decider(idempotency), locks, STRATEGIES, translate=_translate
        )

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._found.close()

    async def write(self, command: ProductCommand) -> Result[Product]:
        """Carry the command out, or replay it.

        Raises ProductNotFound, InvalidField, RequestIdReused, ConflictRetriesExhausted,
        DatabaseUnavailable or Overloaded.
        """
        if isinstance(command, RestockProduct) and not is_id(command.product_id):
            raise ProductNotFound(product_id=command.product_id)
        return await self.lane.submit(command)

    async def get_product(self, product_id: str) -> Product:
        """The product as last committed, or from the cache. Raises ProductNotFound."""

        async def load() -> Sequence[Product]:
            product = await load_by_id(self._found, product_id)
            return () if product is None else (product,)

        found = await self._cache.read(product_id, load)
        if not found:
            raise ProductNotFound(product_id=product_id)
        return found[0]

    async def list_products(self, page: Page) -> Found[Product]:
        """A page of all products, newest first, as last committed or from the cache."""

        async def load() -> Sequence[Product]:
            return await read(
                self._database, lambda connection: store.read_products(connection, page)
            )

        found = await self._cache.read((page.size, page.after), load)
        return Found(
            page, found, lambda product: TimePosition(product.create_time, product.product_id).key
        )


@dataclass(slots=True)
class _Batch:
    """The products of one transaction, as its commands change them."""

    products: dict[str, Product]
    blocked: frozenset[str]
    now: datetime
    loaded: dict[str, Product] = field(default_factory=dict)
    """Changed products as they were loaded."""
    new: list[Product] = field(default_factory=list)
    entries: list[StockEntry] = field(default_factory=list)


class _Decider(Decider[ProductCommand, Result[Product], _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[ProductCommand],
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        wanted = {one.product_id for one in commands if isinstance(one, RestockProduct)}
        loaded = await store.lock(connection, wanted, wait_for_locks=wait_for_locks)
        now = loaded.now or await read_clock(connection)
        return _Batch(loaded.found, loaded.blocked, now)

    def keys(self, command: ProductCommand) -> Sequence[RequestKey]:
        return (command.key,)

    def blocked(self, batch: _Batch, command: ProductCommand) -> RowLocked | None:
        if isinstance(command, RestockProduct) and command.product_id in batch.blocked:
            return RowLocked(command.product_id)
        return None

    def decide(
        self, batch: _Batch, records: IdempotencyRecords, command: ProductCommand
    ) -> Result[Product]:
        if (replayed := records.replay(command, _BODY)) is not None:
            return replayed
        if isinstance(command, CreateProduct):
            product = Product.create(command, new_id(), batch.now)
            batch.new.append(product)
        else:
            product = _restock(batch, command)
        batch.entries.append(product.entry(command))
        return records.answer(command, product, _BODY)

    async def save(
        self,
        connection: Connection,
        batch: _Batch,
        commands: Sequence[ProductCommand],  # no row can conflict: all are locked
    ) -> dict[int, VersionConflict]:
        changed = [(before, batch.products[id_]) for id_, before in batch.loaded.items()]
        if not await store.save(connection, changed):
            raise StaleRead
        await store.add(connection, batch.new)
        await store.add_entries(connection, batch.entries)
        return {}


def _restock(batch: _Batch, command: RestockProduct) -> Product:
    before = batch.products.get(command.product_id)
    if before is None:
        raise ProductNotFound(product_id=command.product_id)
    product = before.restock(command.quantity, batch.now)
    batch.loaded.setdefault(product.product_id, before)
    batch.products[product.product_id] = product
    return product


def _translate(constraint: str, command: ProductCommand) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == STOCK_ENTRY_ONCE:
        # The record was deleted after 30 days; the journal's entry stays.
        return RequestIdReused(request_id=command.request_id)
    return None
