"""A crowd before two replicas of the order service, and ways to take its guards away.

The guards go from outside: the service has no switch that would turn them off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.engines import open_engines
from common.locking.locks import NoLocks
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service import tables
from order_service.model.order import CancelOrder, Order
from order_service.settings import OrderSettings
from order_service.store import orders, products
from order_service.use_cases.order_lane import Batch, OrderLane
from order_service.use_cases.order import Orders
from order_service.use_cases.watch import Watches
from order_service.wiring import build
from tests.support.orders import Shop, sql_of
from tests.support.refusals import outcome
from tests.support.replicas import channel, replicas

RIVALS = 120
EXHAUSTED = "CONFLICT_RETRIES_EXHAUSTED"


@dataclass(frozen=True)
class Crowd:
    """Two replicas, each with a client of its own, and their database."""

    shops: tuple[Shop, Shop]
    sql: Callable[[str], str]

    def turn(self, number: int) -> Shop:
        return self.shops[number % 2]

    def number(self, query: str) -> int:
        return int(self.sql(query).strip())

    def ordered(self, product_id: str, *states: str) -> int:
        """How many of the product are in orders of these states."""
        named = ",".join(f"'{state}'" for state in states)
        return self.number(
            "SELECT coalesce(sum(quantity), 0) FROM order_items JOIN orders USING (order_id)"
            f" WHERE product_id = '{product_id}' AND state IN ({named})"
        )

    def reserved(self, product_id: str) -> int:
        return self.number(f"SELECT reserved FROM products WHERE product_id = '{product_id}'")


@asynccontextmanager
async def crowded(
    database: ServiceUrls, server: PostgresServer, redis_url: str
) -> AsyncIterator[Crowd]:
    async with (
        replicas(
            2,
            OrderSettings,
            build,
            database_url=database.runtime,
            redis_url=redis_url,
            max_concurrent_calls=10_000,
            # Nothing expires but what the test itself sweeps.
            expiry_interval_s=60,
        ) as (one, two),
        channel(one) as first,
        channel(two) as second,
    ):
        yield Crowd((Shop.at(first), Shop.at(second)), sql_of(server, database))


@asynccontextmanager
async def sweeper(database: ServiceUrls) -> AsyncIterator[Orders]:
    """The orders of one more replica, without its server, to be swept when the test says so."""
    pools = open_engines(database.runtime, application_name="sweeper", pool_size=3)
    lane = OrderLane(pools, NoLocks())
    try:
        yield Orders(pools, lane, Watches(pools), expiry=timedelta(minutes=15), begin_cancel=_never)
    finally:
        await lane.close()
        await pools.close()


def _never(_batch: Batch, _command: CancelOrder, order: Order) -> Order:
    raise AssertionError(f"{order.order_id} is not paid")


async def told(call: Callable[[], Awaitable[Any]]) -> Any:
    """The final outcome of a call that is repeated while it may be."""
    for _ in range(100):
        result = await outcome(call())
        if result != EXHAUSTED:
            return result
    raise AssertionError("no final answer")


# -- guards taken away ---------------------------------------------------------------------------


def unlock_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are read, not locked."""
    _unlock(monkeypatch, products, tables.products, tables.products.c.product_id, "product_id")


def unlock_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders are read, not locked."""
    _unlock(monkeypatch, orders, tables.orders, tables.orders.c.order_id, "order_id")


def _unlock(
    monkeypatch: pytest.MonkeyPatch, store: Any, table: sa.Table, key: Any, name: str
) -> None:
    unlocked = sa.select(
        table, sa.func.clock_timestamp(type_=table.c.update_time.type).label("now")
    ).join_from(store._wanted, table, key == store._wanted.c[name])
    monkeypatch.setattr(store, "_LOCK", unlocked)
    monkeypatch.setattr(store, "_LOCK_FREE", unlocked)


def forget_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and orders are written whatever has become of them since they were read."""
    changed, table = products._changed, tables.products
    monkeypatch.setattr(
        products,
        "_SAVE",
        sa.update(table)
        .values(
            stocked=table.c.stocked + changed.c.stocked,
            reserved=table.c.reserved + changed.c.reserved,
            sold=table.c.sold + changed.c.sold,
            version=table.c.version + changed.c.version,
        )
        .where(table.c.product_id == changed.c.product_id),
    )
    moved = orders._changed
    monkeypatch.setattr(
        orders,
        "_SAVE",
        sa.update(tables.orders)
        .values(state=moved.c.state, version=moved.c.version)
        .where(tables.orders.c.order_id == moved.c.order_id),
    )


def drop_constraints(crowd: Crowd, table: str, *names: str) -> None:
    dropped = ", ".join(f"DROP CONSTRAINT {name}" for name in names)
    crowd.sql(f"ALTER TABLE {table} {dropped}")
