"""Products: create, restock, give seats, read and list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from pydantic import TypeAdapter

from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.loader import BatchLoader, load_by_id
from common.batching.outcomes import RowLocked
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read
from common.db.row_locks import AlsoRead, read_clock
from common.db.statements import Connection
from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.ids import is_id, new_id
from common.locking.locks import Locks
from common.paging import Found, Page, TimePosition
from common.request_key import RequestKey, Result
from order_service.errors import ProductNotFound, SeatExists
from order_service.locking import STRATEGIES
from order_service.model.product import (
    CreateProduct,
    Product,
    RestockProduct,
    StockEntry,
    StockEntryKind,
)
from order_service.model.seat import AddSeats, Seat, SeatKey, check_labels
from order_service.store import product as store
from order_service.store import seat as seat_store
from order_service.tables import SEAT_ONCE, SEATS_ALL_OR_NONE, STOCK_ENTRY_ONCE
from order_service.use_cases.product_cache import ProductCache

ProductCommand: TypeAlias = CreateProduct | RestockProduct | AddSeats

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
        on_seats: Callable[[str], None] = lambda _product_id: None,
    ) -> None:
        """``cache_s``: how old what is read may be; 0: not at all.

        ``on_seats`` is called with the product when seats have been added.
        """
        self._database = database
        self._cache = ProductCache(cache_s)
        self._on_seats = on_seats
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

        Raises ProductNotFound, ProductSeated, ProductNotSeated, SeatExists, InvalidField,
        RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        if isinstance(command, AddSeats):
            check_labels(command.labels, "labels")
        if not isinstance(command, CreateProduct) and not is_id(command.product_id):
            raise ProductNotFound(product_id=command.product_id)
        written = await self.lane.submit(command)
        if isinstance(command, AddSeats) and not written.replayed:
            self._on_seats(command.product_id)
        return written

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
    seats: dict[SeatKey, Seat] = field(default_factory=dict)
    """Those that the commands name and that exist, added by this batch or before it."""
    new_seats: list[Seat] = field(default_factory=list)


class _Decider(Decider[ProductCommand, Result[Product], _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[ProductCommand],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        wanted = {one.product_id for one in commands if not isinstance(one, CreateProduct)}
        loaded = await store.lock(connection, wanted, wait_for_locks=wait_for_locks, also=records)
        now = loaded.now or await read_clock(connection)
        batch = _Batch(loaded.found, loaded.blocked, now)
        if named := {key for one in commands if isinstance(one, AddSeats) for key in one.seats}:
            batch.seats = await seat_store.find(connection, named)
        return batch

    def keys(self, command: ProductCommand) -> Sequence[RequestKey]:
        return (command.key,)

    def blocked(self, batch: _Batch, command: ProductCommand) -> RowLocked | None:
        if not isinstance(command, CreateProduct) and command.product_id in batch.blocked:
            return RowLocked(command.product_id)
        return None

    def decide(
        self, batch: _Batch, records: IdempotencyRecords, command: ProductCommand
    ) -> Result[Product]:
        if (replayed := records.replay(command, _BODY)) is not None:
            return replayed
        match command:
            case CreateProduct():
                product = Product.create(command, new_id(), batch.now)
                batch.new.append(product)
                kind, quantity = StockEntryKind.CREATED, command.stock
            case RestockProduct():
                product = _change(
                    batch, _product(batch, command).restock(command.quantity, batch.now)
                )
                kind, quantity = StockEntryKind.RESTOCKED, command.quantity
            case AddSeats():
                product = _add_seats(batch, command)
                kind, quantity = StockEntryKind.SEATED, len(command.labels)
        batch.entries.append(product.entry(kind, quantity, command.request_id))
        return records.answer(command, product, _BODY)

    async def save(
        self,
        connection: Connection,
        batch: _Batch,
        commands: Sequence[ProductCommand],  # no row can conflict: all are locked
    ) -> Saved:
        changed = [(before, batch.products[id_]) for id_, before in batch.loaded.items()]
        return Saved(
            [
                *store.saving(changed),
                *store.adding(batch.new),
                *seat_store.adding(batch.new_seats),
                *store.adding_entries(batch.entries),
            ]
        )


def _product(batch: _Batch, command: RestockProduct | AddSeats) -> Product:
    product = batch.products.get(command.product_id)
    if product is None:
        raise ProductNotFound(product_id=command.product_id)
    return product


def _change(batch: _Batch, product: Product) -> Product:
    batch.loaded.setdefault(product.product_id, batch.products[product.product_id])
    batch.products[product.product_id] = product
    return product


def _add_seats(batch: _Batch, command: AddSeats) -> Product:
    product = _product(batch, command).add_seats(len(command.labels), batch.now)
    existing = {at: seat for at, key in enumerate(command.seats) if (seat := batch.seats.get(key))}
    if any(seat.request_id == command.request_id for seat in existing.values()):
        # The record was deleted after 30 days; the seats stay.
        raise RequestIdReused(request_id=command.request_id)
    if existing:
        raise SeatExists(command.product_id, {at: seat.label for at, seat in existing.items()})
    for label in command.labels:
        seat = Seat.new(command, label, product.version)
        batch.seats[seat.key] = seat
        batch.new_seats.append(seat)
    return _change(batch, product)


def _translate(constraint: str, command: ProductCommand) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == STOCK_ENTRY_ONCE:
        # The record was deleted after 30 days; the journal's entry stays.
        return RequestIdReused(request_id=command.request_id)
    if constraint in {SEAT_ONCE, SEATS_ALL_OR_NONE}:
        # The rows were not what the model saw: the lines of defence before this one failed.
        return ConflictRetriesExhausted(lane="product")
    return None
