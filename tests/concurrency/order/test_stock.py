"""The last items before a crowd: exactly as many sold as there are, and nobody waits in a circle.

Every race has its control: the same calls with the guard taken away from outside must do the damage
that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from common.db.errors import sqlstate
from common.db.idempotency import IdempotencyRecords
from deploy.local.postgres_roles import ServiceUrls
from order_service.store import products
from order_service.tables import (
    ORDER_REQUEST_ONCE,
    STOCK_NOT_OVERSOLD,
)
from tally.order.v1 import order_pb2 as pb
from tests.support.order_crowd import (
    RIVALS,
    Crowd,
    drop_constraints,
    forget_versions,
    told,
    unlock_products,
)
from tests.support.orders import create_order, set_item
from tests.support.refusals import outcome
from tests.support.rendezvous import Rendezvous, meet_after

STOCK = 30
DEADLOCK = "40P01"


async def rush(crowd: Crowd, lines: Callable[[int], dict[str, int]]) -> list[Any]:
    """One order of each rival at once, over both replicas."""

    async def one(number: int) -> Any:
        request = create_order(f"user-{number}", lines(number), "o1")
        return await told(lambda: crowd.turn(number // 2).orders.CreateOrder(request))

    return await asyncio.gather(*(one(number) for number in range(RIVALS)))


def count(results: list[Any]) -> Counter[str]:
    return Counter(each if isinstance(each, str) else "ORDERED" for each in results)


# -- several products in opposite orders -----------------------------------------------------------


async def test_the_last_items_of_several_products_in_opposite_orders(crowd: Crowd) -> None:
    one, two, three = [await crowd.shops[0].product(STOCK) for _ in range(3)]
    wanted = [{one: 1, two: 1}, {two: 1, one: 1}, {two: 1, three: 1}, {three: 1, two: 1}]
    results = await rush(crowd, lambda number: wanted[number % len(wanted)])
    # Each rival wants one of the second product, and of that there are so many.
    assert count(results) == {"ORDERED": STOCK, "OUT_OF_STOCK": RIVALS - STOCK}
    for product_id in (one, two, three):
        reserved = crowd.ordered(product_id, "PENDING")
        assert await crowd.shops[1].stock(product_id) == (STOCK - reserved, reserved, 0)
    assert crowd.ordered(two, "PENDING") == STOCK
    assert crowd.ordered(one, "PENDING") + crowd.ordered(three, "PENDING") == STOCK


@pytest.fixture
async def waiting_engine(database: ServiceUrls) -> Any:
    """Sessions that wait for a row until a deadlock is found."""
    engine = create_async_engine(database.runtime.replace("://", "+asyncpg://"), pool_size=10)
    yield engine
    await engine.dispose()


async def take(engine: AsyncEngine, *steps: list[str], meeting: Rendezvous | None = None) -> str:
    """Lock products step by step in one transaction; the SQLSTATE that it ended with, or ''."""
    async with engine.connect() as connection:
        try:
            async with connection.begin():
                for step in steps:
                    loaded = await products.load(connection, step, wait_for_locks=True)
                    assert set(loaded.products) == set(step)
                    if meeting is not None:
                        await meeting.come()
        except sa.exc.DBAPIError as error:
            return sqlstate(error)
    return ""


async def test_products_are_locked_in_one_order_whoever_names_them_how(
    bare_crowd: Crowd, waiting_engine: AsyncEngine
) -> None:
    ids = [await bare_crowd.shops[0].product(1) for _ in range(8)]

    async def one(number: int) -> list[str]:
        mine = ids if number % 2 else ids[::-1]
        return [await take(waiting_engine, mine) for _ in range(20)]

    ends = await asyncio.gather(*(one(number) for number in range(8)))
    assert {end for each in ends for end in each} == {""}


async def test_control_unsorted_locks_deadlock(
    bare_crowd: Crowd, waiting_engine: AsyncEngine
) -> None:
    one, two = [await bare_crowd.shops[0].product(1) for _ in range(2)]
    meeting = Rendezvous()
    ends = await asyncio.gather(
        take(waiting_engine, [one], [two], meeting=meeting),
        take(waiting_engine, [two], [one], meeting=meeting),
    )
    assert sorted(ends) == ["", DEADLOCK]


# -- oversell, guard by guard ----------------------------------------------------------------------


async def test_control_without_any_guard_more_is_sold_than_there_is(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea = await crowd.shops[0].product(1)
    unlock_products(monkeypatch)
    forget_versions(monkeypatch)
    drop_constraints(crowd, "products", STOCK_NOT_OVERSOLD)
    meeting = meet_after(monkeypatch, products, "load")
    results = await rush(crowd, lambda _: {tea: 1})
    assert meeting.met
    assert count(results)["ORDERED"] > 1
    assert crowd.ordered(tea, "PENDING") > 1


@pytest.mark.parametrize("guard", ["lock", "version", "constraint"])
async def test_each_guard_alone_keeps_the_stock_right(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    tea = await bare_crowd.shops[0].product(STOCK)
    if guard != "lock":
        unlock_products(monkeypatch)
        meet_after(monkeypatch, products, "load")
    if guard != "version":
        forget_versions(monkeypatch)
    if guard != "constraint":
        drop_constraints(bare_crowd, "products", STOCK_NOT_OVERSOLD)
    results = await rush(bare_crowd, lambda _: {tea: 1})
    assert count(results) == {"ORDERED": STOCK, "OUT_OF_STOCK": RIVALS - STOCK}
    assert bare_crowd.ordered(tea, "PENDING") == bare_crowd.reserved(tea) == STOCK


# -- one request many times ------------------------------------------------------------------------


async def duplicates(crowd: Crowd, product_id: str) -> list[Any]:
    request = create_order("ann", {product_id: 1}, "o1")

    async def one(number: int) -> Any:
        return await told(lambda: crowd.turn(number).orders.CreateOrder(request))

    return await asyncio.gather(*(one(number) for number in range(100)))


async def test_a_request_sent_a_hundred_times_makes_one_order(crowd: Crowd) -> None:
    tea = await crowd.shops[0].product(1_000)
    responses = await duplicates(crowd, tea)
    assert len({response.order.order_id for response in responses}) == 1
    assert Counter(response.replayed for response in responses) == {False: 1, True: 99}
    assert await crowd.shops[0].stock(tea) == (999, 1, 0)


def forget_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of earlier requests, and nothing is kept of these."""

    async def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(IdempotencyRecords, "get", lambda *_: None)
    monkeypatch.setattr(IdempotencyRecords, "save", nothing)


async def test_control_without_answers_and_constraint_each_duplicate_makes_an_order(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea = await crowd.shops[0].product(1_000)
    forget_answers(monkeypatch)
    drop_constraints(crowd, "orders", ORDER_REQUEST_ONCE)
    responses = await duplicates(crowd, tea)
    assert len({response.order.order_id for response in responses}) == 100
    assert crowd.reserved(tea) == 100


async def test_the_constraint_alone_lets_a_request_make_one_order(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea = await bare_crowd.shops[0].product(1_000)
    forget_answers(monkeypatch)
    results = await duplicates(bare_crowd, tea)
    assert count(results) == {"ORDERED": 1, "REQUEST_ID_REUSED": 99}
    assert bare_crowd.reserved(tea) == 1


# -- two tabs --------------------------------------------------------------------------------------


async def test_of_a_hundred_changes_from_one_version_one_is_made(crowd: Crowd) -> None:
    tea = await crowd.shops[0].product(1)
    for version in range(2):
        results = await asyncio.gather(
            *(
                outcome(
                    crowd.turn(number).carts.SetCartItem(
                        set_item("ann", tea, 200 * version + number + 1, expected_version=version)
                    )
                )
                for number in range(100)
            )
        )
        assert Counter(each for each in results if isinstance(each, str)) == {"CART_CHANGED": 99}
        (made,) = [each.cart for each in results if not isinstance(each, str)]
        assert made.version == version + 1
        got = await crowd.shops[0].carts.GetCart(pb.GetCartRequest(user_id="ann"))
        assert got.cart == made


async def add_one(crowd: Crowd, number: int, product_id: str, meeting: Any, *, safe: bool) -> None:
    """A tab that reads the cart and puts one more of the product in."""
    while True:
        shop = crowd.turn(number)
        cart = (await shop.carts.GetCart(pb.GetCartRequest(user_id="ann"))).cart
        quantity = next((item.quantity for item in cart.items), 0) + 1
        await meeting.come()
        expected = cart.version if safe else None
        request = set_item("ann", product_id, quantity, expected_version=expected)
        if await outcome(shop.carts.SetCartItem(request)) != "CART_CHANGED":
            return


@pytest.mark.parametrize("safe", [True, False], ids=["version", "control-no-version"])
async def test_two_tabs_lose_nothing_of_each_other_while_they_name_the_version(
    crowd: Crowd, safe: bool
) -> None:
    tea = await crowd.shops[0].product(1)
    for _ in range(50):
        meeting = Rendezvous()
        await asyncio.gather(
            *(add_one(crowd, number, tea, meeting, safe=safe) for number in range(2))
        )
        assert meeting.met
    cart = (await crowd.shops[0].carts.GetCart(pb.GetCartRequest(user_id="ann"))).cart
    assert cart.items[0].quantity == (100 if safe else 50)


async def test_changes_of_different_lines_without_a_version_are_all_kept(crowd: Crowd) -> None:
    ids = [await crowd.shops[0].product(1) for _ in range(50)]
    await asyncio.gather(
        *(
            crowd.turn(number).carts.SetCartItem(set_item("ann", product_id, number + 1))
            for number, product_id in enumerate(ids)
        )
    )
    cart = (await crowd.shops[0].carts.GetCart(pb.GetCartRequest(user_id="ann"))).cart
    assert {item.product_id: item.quantity for item in cart.items} == {
        product_id: number + 1 for number, product_id in enumerate(ids)
    }
    assert cart.version == 50
