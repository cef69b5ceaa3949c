"""Rows that another transaction holds delay their own commands, whatever else shares the pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from common.batching.lock_wait_queue import LockWaitQueue
from common.metrics import REGISTRY
from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.databases import open_transaction
from tests.support.orders import Shop, open_shop, set_item
from tests.support.payments import until
from tests.support.refusals import Results, outcome
from tests.support.waits import until_true

HELD = 12
CHANGES = 900
OTHERS = 20
POOLS = [4, 5, 8]
LOCK = "SELECT FROM products WHERE product_id IN ({}) FOR NO KEY UPDATE"
TURN = {"lane": "order", "fault": "held"}
Sql = Callable[[str], str]


@pytest.fixture(params=POOLS)
async def shop(request: pytest.FixtureRequest, order_database: ServiceUrls) -> AsyncIterator[Shop]:
    """One replica, without Redis. 4 is the smallest pool, 8 the default."""
    async with open_shop(
        1, database_url=order_database.runtime, pool_size=request.param, expiry_interval_s=0.05
    ) as opened:
        yield opened


async def until_held(sql: Sql) -> None:
    """Wait until a transaction of the service waits for a row."""
    await until(
        lambda: asyncio.to_thread(
            sql, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ),
        lambda count: int(count) > 0,
    )


def turns_in_vain() -> int:
    """How many transactions have waited for a row that stayed held."""
    return int(REGISTRY.get_sample_value("tally_lane_faults_total", TURN) or 0)


def when_queued(product_id: str, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a command waits for the row of this product."""
    queued, wait = asyncio.Event(), LockWaitQueue.wait

    def waiting(queue: Any, entry: Any, row: Any) -> None:
        wait(queue, entry, row)
        if product_id in repr(entry.command):
            queued.set()

    monkeypatch.setattr(LockWaitQueue, "wait", waiting)
    return queued


async def set_by_others(shop: Shop, product_id: str) -> None:
    """Other users change their carts."""
    await asyncio.gather(
        *(shop.carts.SetCartItem(set_item(f"u{n}", product_id, 1)) for n in range(OTHERS))
    )


async def test_held_products_delay_no_cart(
    order_database: ServiceUrls, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a transaction waits for its row, no cart waits for it."""
    monkeypatch.setattr("common.db.database.LOCK_TIMEOUT_MS", 60_000)
    async with open_shop(1, database_url=order_database.runtime, pool_size=4) as shop:
        held = [await shop.product(10) for _ in range(HELD)]
        ids = ", ".join(f"'{id_}'" for id_ in held)
        tea = await shop.product(10)
        async with open_transaction(order_database, LOCK.format(ids)):
            waiting = [
                asyncio.ensure_future(shop.order(f"w{n}", {id_: 1})) for n, id_ in enumerate(held)
            ]
            await until_held(sql)
            await set_by_others(shop, tea)
            assert not any(call.done() for call in waiting)
        await asyncio.gather(*waiting)


async def test_held_products_delay_only_their_own_orders(
    shop: Shop, order_database: ServiceUrls, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carts, other orders and the sweeps go on, and so does what waits for a row for a moment."""
    held = [await shop.product(10) for _ in range(HELD)]
    tea, cup = await shop.product(10), await shop.product(10)
    overdue = await shop.order("ann", {tea: 1})
    ids = ", ".join(f"'{id_}'" for id_ in held)
    async with open_transaction(order_database, LOCK.format(ids)):
        waiting = [
            asyncio.ensure_future(shop.order(f"w{n}", {id_: 1})) for n, id_ in enumerate(held)
        ]
        await until_held(sql)
        await set_by_others(shop, tea)
        await shop.order("bob", {tea: 1})
        async with open_transaction(order_database, LOCK.format(f"'{cup}'")):
            queued = when_queued(cup, monkeypatch)
            short = asyncio.ensure_future(shop.order("cid", {cup: 1}))
            await queued.wait()
        await short
        sql(f"UPDATE orders SET expire_time = now() WHERE order_id = '{overdue.order_id}'")
        await until(lambda: shop.get(overdue), lambda order: order.state == pb.Order.STATE_EXPIRED)
        assert not any(call.done() for call in waiting)
    await asyncio.gather(*waiting)


async def test_carts_that_wait_leave_a_connection_to_orders(
    order_database: ServiceUrls, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the transactions of carts take, one connection of the lanes is not theirs."""
    for name in ("LANE_LOCK_TIMEOUT_MS", "STATEMENT_TIMEOUT_MS"):
        monkeypatch.setattr(f"common.db.database.{name}", 60_000)
    async with open_shop(1, database_url=order_database.runtime, pool_size=8) as shop:
        tea = await shop.product(10)
        async with open_transaction(order_database, "LOCK TABLE carts IN EXCLUSIVE MODE"):
            changes = asyncio.gather(
                *(shop.carts.SetCartItem(set_item(f"u{n}", tea, 1)) for n in range(OTHERS))
            )
            await until_held(sql)
            await shop.order("bob", {tea: 1})
            assert not changes.done()
        await changes


async def test_stuck_rows_leave_a_turn_to_a_row_held_for_a_moment(
    order_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have waited for longer than a turn do not come first, however many they are."""
    monkeypatch.setattr("common.db.database.LOCK_TIMEOUT_MS", 100)
    async with open_shop(1, database_url=order_database.runtime, pool_size=8) as shop:
        held = [await shop.product(10) for _ in range(HELD)]
        cup = await shop.product(10)
        ids = ", ".join(f"'{id_}'" for id_ in held)
        async with open_transaction(order_database, LOCK.format(ids)):
            waiting = asyncio.gather(*(shop.order(f"w{n}", {id_: 1}) for n, id_ in enumerate(held)))
            enough = turns_in_vain() + 2 * HELD
            await until_true(lambda: turns_in_vain() >= enough)
            async with open_transaction(order_database, LOCK.format(f"'{cup}'")):
                queued = when_queued(cup, monkeypatch)
                short = asyncio.ensure_future(shop.order("cid", {cup: 1}))
                await queued.wait()
            before = turns_in_vain()
            await short
            assert turns_in_vain() - before < HELD / 2
            assert not waiting.done()
        await waiting


async def test_a_held_cart_delays_only_its_own_changes(
    shop: Shop, order_database: ServiceUrls
) -> None:
    """However many there are: the surplus is refused as overload, and not as a lost database."""
    tea = await shop.product(10)
    await shop.carts.SetCartItem(set_item("ann", tea, 1))
    lock = "SELECT FROM carts WHERE user_id = 'ann' FOR NO KEY UPDATE"
    async with open_transaction(order_database, lock):
        changes = [
            asyncio.ensure_future(outcome(shop.carts.SetCartItem(set_item("ann", tea, 2 + n))))
            for n in range(CHANGES)
        ]
        await asyncio.sleep(0)
        await set_by_others(shop, tea)
        assert not all(change.done() for change in changes)
    results = Results.of(await asyncio.gather(*changes))
    assert set(results.refusals) <= {"OVERLOADED", "CONFLICT_RETRIES_EXHAUSTED"}, results.refusals
    assert results.refusals["OVERLOADED"] > 0
    await shop.carts.SetCartItem(set_item("ann", tea, 1))


async def test_changes_of_one_cart_leave_connections_to_others(
    shop: Shop, order_database: ServiceUrls
) -> None:
    """Nobody holds the row: the changes contend with each other."""
    tea = await shop.product(10)
    changes = asyncio.gather(
        *(outcome(shop.carts.SetCartItem(set_item("ann", tea, 1 + n))) for n in range(CHANGES))
    )
    await asyncio.sleep(0)
    await set_by_others(shop, tea)
    await shop.order("bob", {tea: 1})
    assert set(Results.of(await changes).refusals) <= {"OVERLOADED"}
