"""Products in SQL."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from common.money import Money
from order_service.model.products import Product
from order_service.tables import products

_UUID: Final = sa.UUID(as_uuid=False)
_TIME: Final = sa.DateTime(timezone=True)


@dataclass(slots=True)
class LoadedProducts:
    """The products a batch may change; those that do not exist are in neither."""

    products: dict[str, Product] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Products that exist but are locked by another transaction."""
    now: datetime | None = None
    """The database's clock, read when the rows were ours; None if no row was found."""


_wanted = unnest("wanted", product_id=_UUID)


def _locking(*, skip_locked: bool) -> sa.Select[Any]:
    """The wanted rows, locked in ascending order: a sort comes before its FOR UPDATE.

    FOR NO KEY UPDATE is the row lock that an UPDATE takes. The clock is read outside, when the row
    is ours: the SELECT list of the locking query is computed before the wait.
    """
    locked = (
        sa.select(products)
        .join_from(_wanted, products, products.c.product_id == _wanted.c.product_id)
        .order_by(products.c.product_id)
        .with_for_update(of=products, key_share=True, skip_locked=skip_locked)
        .cte("locked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return sa.select(locked, sa.func.clock_timestamp(type_=_TIME).label("now"))


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)
_KNOWN: Final = sa.select(products.c.product_id).join_from(
    _wanted, products, products.c.product_id == _wanted.c.product_id
)

_changed = unnest(
    "changed",
    product_id=_UUID,
    loaded_version=sa.BigInteger,
    stocked=sa.BigInteger,
    reserved=sa.BigInteger,
    sold=sa.BigInteger,
    version=sa.BigInteger,
    update_time=_TIME,
)
# The rows are locked, and still the version is compared and the counts are added to what is there
# rather than written over it: should a lock ever fail to be taken, the write that came second
# fails, and should that fail too, the constraint sees the true sums.
_SAVE: Final = (
    sa.update(products)
    .values(
        stocked=products.c.stocked + _changed.c.stocked,
        reserved=products.c.reserved + _changed.c.reserved,
        sold=products.c.sold + _changed.c.sold,
        version=products.c.version + _changed.c.version,
        update_time=_changed.c.update_time,
    )
    .where(
        products.c.product_id == _changed.c.product_id,
        products.c.version == _changed.c.loaded_version,
    )
)

_new = unnest(
    "new",
    product_id=_UUID,
    name=sa.Text,
    currency_code=sa.Text,
    price_minor=sa.BigInteger,
    stocked=sa.BigInteger,
    reserved=sa.BigInteger,
    sold=sa.BigInteger,
    version=sa.BigInteger,
    create_time=_TIME,
    update_time=_TIME,
)
_ADD: Final = sa.insert(products).from_select(list(_new.c.keys()), sa.select(_new))
_CLOCK: Final = sa.select(sa.func.clock_timestamp(type_=_TIME))


async def load(
    connection: AsyncConnection, product_ids: Collection[str], *, wait_for_locks: bool
) -> LoadedProducts:
    """Lock the products; ``wait_for_locks`` waits for rows that others hold."""
    loaded = LoadedProducts()
    if not product_ids:
        return loaded
    parameters = arrays("wanted", product_id=sorted(product_ids))
    for row in await connection.execute(_LOCK if wait_for_locks else _LOCK_FREE, parameters):
        loaded.now = row.now if loaded.now is None else max(loaded.now, row.now)
        loaded.products[row.product_id] = to_product(row)
    if len(loaded.products) < len(product_ids):
        # Not there, or skipped because somebody holds it?
        known = await connection.execute(_KNOWN, parameters)
        loaded.held = set(known.scalars()) - loaded.products.keys()
    return loaded


async def clock(connection: AsyncConnection) -> datetime:
    """The database's clock, for batches that lock no row."""
    return (await connection.execute(_CLOCK)).scalar_one()


async def save(connection: AsyncConnection, changed: Iterable[tuple[Product, Product]]) -> bool:
    """Write (loaded, changed) pairs; whether each product was still at its loaded version."""
    pairs = sorted(changed, key=lambda pair: pair[0].product_id)
    if not pairs:
        return True
    result = await connection.execute(
        _SAVE,
        arrays(
            "changed",
            product_id=[product.product_id for _, product in pairs],
            loaded_version=[loaded.version for loaded, _ in pairs],
            stocked=[product.stocked - loaded.stocked for loaded, product in pairs],
            reserved=[product.reserved - loaded.reserved for loaded, product in pairs],
            sold=[product.sold - loaded.sold for loaded, product in pairs],
            version=[product.version - loaded.version for loaded, product in pairs],
            update_time=[product.update_time for _, product in pairs],
        ),
    )
    return result.rowcount == len(pairs)


async def add(connection: AsyncConnection, new: Iterable[Product]) -> None:
    """Insert new products."""
    rows = sorted(new, key=lambda product: product.product_id)
    if not rows:
        return
    await connection.execute(
        _ADD,
        arrays(
            "new",
            product_id=[product.product_id for product in rows],
            name=[product.name for product in rows],
            currency_code=[product.price.currency_code for product in rows],
            price_minor=[product.price.amount_minor for product in rows],
            stocked=[product.stocked for product in rows],
            reserved=[product.reserved for product in rows],
            sold=[product.sold for product in rows],
            version=[product.version for product in rows],
            create_time=[product.create_time for product in rows],
            update_time=[product.update_time for product in rows],
        ),
    )


# -- reads ---------------------------------------------------------------------------------------

_ONE: Final = sa.select(products).where(products.c.product_id == sa.bindparam("product_id"))
_NEWEST: Final = (
    sa.select(products)
    .where(
        sa.tuple_(products.c.create_time, products.c.product_id)
        < sa.tuple_(
            sa.bindparam("before_time", type_=_TIME), sa.bindparam("before_id", type_=_UUID)
        )
    )
    .order_by(products.c.create_time.desc(), products.c.product_id.desc())
    .limit(sa.bindparam("size"))
)


async def read_product(connection: AsyncConnection, product_id: str) -> Product | None:
    """One product as it was last committed."""
    row = (await connection.execute(_ONE, {"product_id": product_id})).one_or_none()
    return None if row is None else to_product(row)


async def read_products(
    connection: AsyncConnection, *, before: tuple[datetime, str], size: int
) -> list[Product]:
    """At most ``size`` products made before that one, newest first."""
    rows = await connection.execute(
        _NEWEST, {"size": size, "before_time": before[0], "before_id": before[1]}
    )
    return [to_product(row) for row in rows]


def to_product(row: Any) -> Product:
    return Product(
        row.product_id,
        row.name,
        Money(row.currency_code, row.price_minor),
        row.stocked,
        row.reserved,
        row.sold,
        row.version,
        row.create_time,
        row.update_time,
    )
