"""Sweeps go past orders and sagas that they cannot take: what stands behind them is worked on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from deploy.local.postgres_roles import ServiceUrls
from order_service.use_cases import expiry
from tally.order.v1 import order_pb2 as pb
from tests.support.databases import open_transaction
from tests.support.orders import Shop, open_shop, sweeper

PAGE = 2
Sql = Callable[[str], str]


@pytest.fixture
async def shop(order_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    """A replica that does not sweep by itself."""
    monkeypatch.setattr(expiry, "SWEEP_ROWS", PAGE)
    async with open_shop(1, database_url=order_database.runtime, expiry_interval_s=60) as opened:
        yield opened


async def overdue(shop: Shop, sql: Sql, count: int) -> list[pb.Order]:
    """Orders whose time has passed, of a product each, the longest overdue first."""
    made = [await shop.order("ann", {await shop.product(10): 1}) for _ in range(count)]
    for age, order in enumerate(reversed(made), start=1):
        sql(
            f"UPDATE orders SET expire_time = now() - interval '{age} s'"
            f" WHERE order_id = '{order.order_id}'"
        )
    return made


async def states(shop: Shop, orders: list[pb.Order]) -> list[str]:
    return [
        pb.Order.State.Name((await shop.get(order)).state).removeprefix("STATE_")
        for order in orders
    ]


@pytest.mark.parametrize("held", ["orders", "products"])
async def test_overdue_orders_behind_held_rows_expire(
    shop: Shop, sql: Sql, order_database: ServiceUrls, held: str
) -> None:
    """More rows are held than a sweep takes at once."""
    made = await overdue(shop, sql, 2 * PAGE + 1)
    front = made[: PAGE + 1]
    key, ids = "order_id", [order.order_id for order in front]
    if held == "products":
        key, ids = "product_id", [order.items[0].product_id for order in front]
    named = ", ".join(f"'{id_}'" for id_ in ids)
    lock = f"SELECT FROM {held} WHERE {key} IN ({named}) FOR NO KEY UPDATE"
    async with sweeper(order_database) as replica:
        async with open_transaction(order_database, lock):
            assert await replica.expire_due() == PAGE
            assert await states(shop, made) == ["PENDING"] * (PAGE + 1) + ["EXPIRED"] * PAGE
        assert await replica.expire_due() == PAGE + 1


# Its stock was already given back: the constraint refuses to do so again.
REFUSED = "UPDATE products SET reserved = 0 WHERE product_id = '{product_id}'"
# Its statement reaches its time limit, also alone.
TOO_SLOW = """
CREATE FUNCTION too_slow() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'query_canceled'; END $$;
CREATE TRIGGER too_slow BEFORE UPDATE ON orders FOR EACH ROW
    WHEN (OLD.order_id = '{order_id}') EXECUTE FUNCTION too_slow()
"""


@pytest.mark.parametrize("damage", [REFUSED, TOO_SLOW], ids=["refused", "too slow"])
async def test_orders_that_cannot_expire_stop_no_other(
    shop: Shop, sql: Sql, order_database: ServiceUrls, damage: str
) -> None:
    """Each is logged once with its id, and tried less and less often."""
    made = await overdue(shop, sql, PAGE + 1)
    broken = made[0]
    sql(damage.format(order_id=broken.order_id, product_id=broken.items[0].product_id))
    async with sweeper(order_database) as replica:
        with capture_logs() as logged:
            assert await replica.expire_due() == PAGE
            assert await replica.expire_due() == 0
    assert await states(shop, made) == ["PENDING"] + ["EXPIRED"] * PAGE
    assert [line["order_id"] for line in logged if line["event"] == "order_not_expired"] == [
        broken.order_id
    ]


async def test_one_unreadable_order_hides_no_other(shop: Shop, sql: Sql) -> None:
    """Every page of the list has its full length."""
    made = [await shop.order("ann", {await shop.product(10): 1}) for _ in range(4)]
    sql("ALTER TABLE orders DROP CONSTRAINT orders_state")
    sql(f"UPDATE orders SET state = 'LATER' WHERE order_id = '{made[2].order_id}'")
    found: list[str] = []
    request: Any = pb.ListOrdersRequest(user_id="ann", page_size=2)
    while True:
        page = await shop.orders.ListOrders(request)
        found += [order.order_id for order in page.orders]
        if not page.next_page_token:
            break
        request = pb.ListOrdersRequest(user_id="ann", page_size=2, page_token=page.next_page_token)
    assert found == [made[n].order_id for n in (3, 1, 0)]
