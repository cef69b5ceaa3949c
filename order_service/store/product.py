"""Products in SQL."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import sqlalchemy as sa

from common.db.keyset import newest_first, rows_of
from common.db.row_locks import AlsoRead, Locked, RowLocks
from common.db.rows import from_row, one_per_key
from common.db.statements import Connection, Row
from common.db.unnest import arrays, insert_from, same, unnest
from common.db.writes import Write
from common.money import Money
from common.paging import Page
from order_service.model.product import Product, StockEntry
from order_service.tables import products, stock_entries

_COLUMNS: Final = tuple(str(one.key) for one in products.c if one.key != "seats_version")
"""What is read and inserted: the version of the seats is written with each change."""
_PRODUCTS: Final[RowLocks[str]] = RowLocks(products, "product_id", columns=_COLUMNS)

_COUNTS: Final = ("stocked", "reserved", "sold", "version", "seats")
_changed = unnest(
    "moved", *products.c[("product_id", *_COUNTS, "update_time")], loaded_version=sa.BigInteger
)
# The rows are locked, and still the version is compared and counts are added to the row instead of
# replacing it: if a lock was ever not taken, the second write fails, and if the comparison failed
# too, the constraint sees the true sums.
_SAVE: Final = (
    sa.update(products)
    .values(
        {name: products.c[name] + _changed.c[name] for name in _COUNTS}
        | {
            "seats_version": products.c.version + _changed.c.version,
            "update_time": _changed.c.update_time,
        }
    )
    .where(
        same(products, _changed, ["product_id"]),
        products.c.version == _changed.c.loaded_version,
    )
)

_added = unnest("new_product", *products.c[_COLUMNS])
_ADD: Final = insert_from(products, _added)

_entries = unnest("entry", *stock_entries.c)
_ADD_ENTRIES: Final = insert_from(stock_entries, _entries, ("kind", "request_id"))


async def lock(
    connection: Connection,
    product_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[str, Product]:
    """Lock the products (``RowLocks``)."""
    locked = await _PRODUCTS.lock(connection, product_ids, wait_for_locks=wait_for_locks, also=also)
    return locked.map(_to_product)


def saving(changed: Iterable[tuple[Product, Product]]) -> list[Write]:
    """The write of (loaded, changed) pairs, each still at its loaded version."""
    rows = [
        {name: getattr(product, name) - getattr(loaded, name) for name in _COUNTS}
        | {
            "product_id": product.product_id,
            "update_time": product.update_time,
            "loaded_version": loaded.version,
        }
        for loaded, product in changed
    ]
    return [Write(_SAVE, arrays(_changed, rows), len(rows))] if rows else []


def adding(new: Collection[Product]) -> list[Write]:
    """The write of new products."""
    rows = [_to_row(product) for product in sorted(new, key=lambda row: row.product_id)]
    return [Write(_ADD, arrays(_added, rows), len(rows))] if rows else []


def adding_entries(entries: Collection[StockEntry]) -> list[Write]:
    """The write that appends to the stock journal, in ascending order."""
    return [Write(_ADD_ENTRIES, arrays(_entries, entries), len(entries))] if entries else []


# -- reads ---------------------------------------------------------------------------------------

_NEWEST: Final = newest_first(
    sa.select(*products.c[_COLUMNS]), products.c.create_time, products.c.product_id
)


async def find_products(
    connection: Connection, product_ids: Sequence[str]
) -> list[Product | Exception | None]:
    """These products as last committed, in their order."""
    found = (await _PRODUCTS.read(connection, product_ids)).found
    return one_per_key(product_ids, found, _to_product)


async def read_products(connection: Connection, page: Page) -> list[Product]:
    """The page's products, newest first, and one more if there is one."""
    return [_to_product(row) for row in await connection.execute(_NEWEST, rows_of(page))]


def _to_row(product: Product) -> dict[str, object]:
    names = set(_COLUMNS) - {"currency_code", "price_minor"}
    return {name: getattr(product, name) for name in names} | {
        "currency_code": product.price.currency_code,
        "price_minor": product.price.amount_minor,
    }


def _to_product(row: Row) -> Product:
    return from_row(Product, row, price=Money(row.currency_code, row.price_minor))
