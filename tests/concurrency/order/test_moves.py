"""Cancel against expiry, and against itself: exactly one wins, and the stock comes back once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from deploy.local.postgres_roles import ServiceUrls
from order_service.store import orders, products
from order_service.tables import STOCK_NOT_NEGATIVE
from tally.order.v1 import order_pb2 as pb
from tests.support.order_crowd import (
    RIVALS,
    Crowd,
    drop_constraints,
    forget_versions,
    sweeper,
    told,
    unlock_orders,
    unlock_products,
)
from tests.support.orders import cancel
from tests.support.rendezvous import meet_after

OVERDUE = "UPDATE orders SET expire_time = now()"


async def cancelled(crowd: Crowd, number: int, made: pb.Order) -> Any:
    request = cancel(made, f"x{number}")
    return await told(lambda: crowd.turn(number).orders.CancelOrder(request))


async def test_of_cancel_and_expiry_exactly_one_wins(crowd: Crowd, database: ServiceUrls) -> None:
    tea, cup = [await crowd.shops[0].product(10 * RIVALS) for _ in range(2)]
    lines = [{tea: 1, cup: 2}, {cup: 2, tea: 1}]
    made = await asyncio.gather(
        *(crowd.turn(number).order(f"u{number}", lines[number % 2]) for number in range(RIVALS))
    )
    crowd.sql(OVERDUE)
    async with sweeper(database) as one, sweeper(database) as two:
        *results, first, second = await asyncio.gather(
            *(cancelled(crowd, number, each) for number, each in enumerate(made)),
            one.expire_due(),
            two.expire_due(),
        )
    states = Counter([(await crowd.shops[0].get(each)).state for each in made])
    assert states.keys() <= {pb.Order.STATE_CANCELLED, pb.Order.STATE_EXPIRED}
    won = [each for each in results if not isinstance(each, str)]
    assert states[pb.Order.STATE_CANCELLED] == len(won)
    assert states[pb.Order.STATE_EXPIRED] == first + second == RIVALS - len(won)
    assert {each for each in results if isinstance(each, str)} <= {"ORDER_NOT_CANCELLABLE"}
    assert crowd.number("SELECT count(*) FROM orders WHERE version = 2") == RIVALS
    for product_id in (tea, cup):
        assert await crowd.shops[1].stock(product_id) == (10 * RIVALS, 0, 0)


async def cancel_and_expire(
    crowd: Crowd, database: ServiceUrls, monkeypatch: pytest.MonkeyPatch, store: Any
) -> tuple[Any, int, str]:
    """One overdue order, cancelled and swept at once: what each was told, and its product.

    The two meet when each has loaded its rows from ``store``.
    """
    tea = await crowd.shops[0].product(10)
    made = await crowd.shops[0].order("ann", {tea: 1})
    crowd.sql(OVERDUE)
    meeting = meet_after(monkeypatch, store, "load")
    async with sweeper(database) as one:
        result, expired = await asyncio.gather(cancelled(crowd, 0, made), one.expire_due())
    assert meeting.met
    return result, expired, tea


async def test_control_without_guards_both_win_and_the_stock_comes_back_twice(
    crowd: Crowd, database: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlock_orders(monkeypatch)
    unlock_products(monkeypatch)
    forget_versions(monkeypatch)
    drop_constraints(crowd, "products", STOCK_NOT_NEGATIVE)
    result, expired, tea = await cancel_and_expire(crowd, database, monkeypatch, products)
    assert result.order.state == pb.Order.STATE_CANCELLED
    assert expired == 1
    assert crowd.reserved(tea) == -1


@pytest.mark.parametrize("guard", ["lock", "version"])
async def test_each_guard_alone_lets_one_of_them_win(
    bare_crowd: Crowd, database: ServiceUrls, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    if guard == "lock":
        forget_versions(monkeypatch)
    else:
        unlock_orders(monkeypatch)
        unlock_products(monkeypatch)
    drop_constraints(bare_crowd, "products", STOCK_NOT_NEGATIVE)
    # Of locked rows one of them finds the order held; otherwise both read all there is to read.
    store = orders if guard == "lock" else products
    result, expired, tea = await cancel_and_expire(bare_crowd, database, monkeypatch, store)
    assert (expired == 1) is (result == "ORDER_NOT_CANCELLABLE")
    assert bare_crowd.reserved(tea) == 0
    assert bare_crowd.number("SELECT max(version) FROM orders") == 2


async def test_an_order_cancelled_by_a_hundred_requests_gives_its_stock_back_once(
    crowd: Crowd,
) -> None:
    tea = await crowd.shops[0].product(10)
    made = await crowd.shops[0].order("ann", {tea: 3})
    results = await asyncio.gather(*(cancelled(crowd, number, made) for number in range(100)))
    assert {each.order.version for each in results} == {2}
    assert {each.order.state for each in results} == {pb.Order.STATE_CANCELLED}
    assert await crowd.shops[1].stock(tea) == (10, 0, 0)
