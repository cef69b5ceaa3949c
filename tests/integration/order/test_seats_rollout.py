"""Beside replicas of the earlier release, which know no seats, seats move with their orders.

During a rollout, and after its undo, the sweeps of such replicas run without any client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import asyncpg
import pytest
import sqlalchemy as sa

from order_service.store import product as product_store
from order_service.store import seat as seat_store
from order_service.tables import SEATS_VERSION, products
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import cancel, fresh, pay, restock, sweeper
from tests.support.payments import until
from tests.support.seats import add_seats, labels, order_seats, seat_map, seated
from tests.support.stack import Stack

SAVE = """
UPDATE products SET stocked = products.stocked + {0}, reserved = products.reserved + {1},
       sold = products.sold + {2}, version = products.version + 1, update_time = now()
 WHERE products.product_id = '{id}'
"""
"""What the earlier release writes of a product."""
_COUNTS = ("stocked", "reserved", "sold", "version")


def earlier_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the replicas write products as the earlier release does, and nothing of their seats."""
    changed = product_store._changed
    monkeypatch.setattr(
        product_store,
        "_SAVE",
        sa.update(products)
        .values(
            {name: products.c[name] + changed.c[name] for name in _COUNTS}
            | {"update_time": changed.c.update_time}
        )
        .where(
            products.c.product_id == changed.c.product_id,
            products.c.version == changed.c.loaded_version,
        ),
    )
    monkeypatch.setattr(seat_store, "saving", Mock(return_value=[]))
    monkeypatch.setattr(seat_store, "freeing", Mock(return_value=[]))


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Without Redis: it guards no row."""
    return ""


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    """No replica expires orders by itself."""
    return {"expiry_interval_s": 60.0}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "counts",
    [(0, 1, 0), (0, -1, 0), (0, -1, 1), (0, 0, -1), (1, 0, 0)],
    ids=["order", "expire-or-cancel", "pay", "cancel-paid", "restock"],
)
async def test_the_earlier_release_moves_no_seated_product(
    stack: Stack, counts: tuple[int, int, int]
) -> None:
    show = await seated(stack.shop, labels(3))
    user = await stack.user(1_000)
    for number in range(2):
        made = await stack.shop.orders.CreateOrder(order_seats(user, {show: [labels(3)[number]]}))
    await stack.pay(pay(made.order))
    connection = await asyncpg.connect(stack.databases.urls["order"].runtime)
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(SAVE.format(*counts, id=show))
    finally:
        await connection.close()
    assert await stack.shop.stock(show) == (1, 1, 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_both_releases_change_a_product_without_seats(stack: Stack) -> None:
    shop, tea, show = stack.shop, await stack.shop.product(1), await stack.shop.product(0)
    for product_id in (tea, show):
        await stack.databases.sql("order", SAVE.format(0, 0, 0, id=product_id))
    await shop.products.RestockProduct(restock(tea, 1, fresh("r")))
    assert await shop.stock(tea) == (2, 0, 0)
    await shop.products.AddSeats(add_seats(show, labels(1), fresh("s")))
    await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))
    assert await shop.stock(show) == (0, 1, 0)


@asynccontextmanager
async def without_guard(stack: Stack) -> AsyncIterator[None]:
    """The constraint is away in the block."""
    await stack.databases.sql("order", f"ALTER TABLE products DROP CONSTRAINT {SEATS_VERSION}")
    yield
    await stack.databases.sql(
        "order",
        f"ALTER TABLE products ADD CONSTRAINT {SEATS_VERSION}"
        " CHECK (seats = 0 OR seats_version = version) NOT VALID",
    )


async def overdue(stack: Stack) -> tuple[str, pb.Order]:
    """A product whose seats an overdue order has."""
    show = await seated(stack.shop, labels(2))
    made = (await stack.shop.orders.CreateOrder(order_seats("ann", {show: labels(2)}))).order
    await stack.databases.sql(
        "order",
        "UPDATE orders SET expire_time = create_time + interval '1 microsecond'"
        f" WHERE order_id = '{made.order_id}'",
    )
    return show, made


@pytest.mark.asyncio(loop_scope="module")
async def test_an_overdue_order_is_left_to_a_replica_that_frees_its_seats(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, made = await overdue(stack)
    with monkeypatch.context() as patch:
        earlier_release(patch)
        async with sweeper(stack.databases.urls["order"]) as earlier:
            assert await earlier.expire_due() == 0
    assert (await stack.shop.get(made)).state == pb.Order.STATE_PENDING
    assert set((await seat_map(stack.shop, show)).values()) == {"RESERVED"}
    async with sweeper(stack.databases.urls["order"]) as replica:
        assert await replica.expire_due() == 1
    assert set((await seat_map(stack.shop, show)).values()) == {"FREE"}
    assert await stack.shop.stock(show) == (2, 0, 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_control_without_the_constraint_seats_stay_reserved(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, _ = await overdue(stack)
    earlier_release(monkeypatch)
    async with without_guard(stack), sweeper(stack.databases.urls["order"]) as earlier:
        assert await earlier.expire_due() == 1
    assert set((await seat_map(stack.shop, show)).values()) == {"RESERVED"}
    assert await stack.shop.stock(show) == (2, 0, 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_payment_is_completed_by_a_replica_that_sells_its_seats(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a cancellation by one that frees them."""
    show, user = await seated(stack.shop, labels(1)), await stack.user(1_000)
    made = (await stack.shop.orders.CreateOrder(order_seats(user, {show: labels(1)}))).order

    async def failures() -> int:
        return (await stack.saga(made)).attempts

    for call, between, ended, state in (
        (stack.pay(pay(made)), pb.Order.STATE_PAYING, pb.Order.STATE_PAID, "SOLD"),
        (
            stack.cancel(cancel(made, fresh())),
            pb.Order.STATE_CANCELLING,
            pb.Order.STATE_CANCELLED,
            "FREE",
        ),
    ):
        with monkeypatch.context() as patch:
            earlier_release(patch)
            calling = asyncio.ensure_future(call)
            await stack.until(made, between)
            await until(failures)
            assert (await stack.shop.get(made)).state == between
        await stack.until(made, ended)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert await seat_map(stack.shop, show) == {"A-0000": state}
    assert await stack.shop.stock(show) == (1, 0, 0)
