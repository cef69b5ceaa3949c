"""The last items before a crowd: exactly as many are ordered as there are, without deadlock.

Every race has its control: the same calls with the guard removed from outside must do the damage
that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from common.db.database import Database
from common.db.statements import Connection
from order_service.store import product as product_store
from order_service.tables import ORDER_REQUEST_ONCE, STOCK_NOT_OVERSOLD
from tests.support.crowd import RIVALS, Crowd, without_redis
from tests.support.guards import forget_records, forget_row_locks
from tests.support.lock_steps import DEADLOCK, Step, database, end_of
from tests.support.orders import (
    Shop,
    create_order,
    drop_constraint,
    forget_versions,
    ordered,
    reserved,
    set_item,
)
from tests.support.refusals import Results, outcome
from tests.support.rendezvous import Rendezvous, meet_after

STOCK = 30
__all__ = ["database"]


async def order_all(crowd: Crowd[Shop], *lines: dict[str, int]) -> Counter[str]:
    """Each rival orders one of these at once; how often each outcome was."""
    responses, refusals = await crowd.race(
        "orders.CreateOrder",
        [
            create_order(f"user-{number}", lines[number // 2 % len(lines)], "o1")
            for number in range(RIVALS)
        ],
        until_final=True,
    )
    return refusals + Counter(ORDERED=len(responses))


# -- several products in opposite orders ---------------------------------------------------------


async def test_the_last_items_of_several_products_in_opposite_orders(crowd: Crowd[Shop]) -> None:
    one, two, three = [await crowd.turn(0).product(STOCK) for _ in range(3)]
    wanted = [{one: 1, two: 1}, {two: 1, one: 1}, {two: 1, three: 1}, {three: 1, two: 1}]
    # Each rival wants one of the second product.
    assert await order_all(crowd, *wanted) == {"ORDERED": STOCK, "OUT_OF_STOCK": RIVALS - STOCK}
    for product_id in (one, two, three):
        count = ordered(crowd, product_id)
        assert await crowd.turn(1).stock(product_id) == (STOCK - count, count, 0)
    assert ordered(crowd, two) == STOCK
    assert ordered(crowd, one) + ordered(crowd, three) == STOCK


def lock(ids: Sequence[str]) -> Step:
    """A step that locks products."""

    async def step(connection: Connection) -> None:
        loaded = await product_store.lock(connection, ids, wait_for_locks=True)
        assert set(loaded.found) == set(ids)

    return step


@without_redis
async def test_products_are_locked_in_one_order_however_they_are_named(
    crowd: Crowd[Shop], database: Database
) -> None:
    ids = [await crowd.turn(0).product(1) for _ in range(8)]

    async def lock_all(number: int) -> set[str]:
        named = ids if number % 2 else ids[::-1]
        return {await end_of(database, lock(named)) for _ in range(20)}

    assert await asyncio.gather(*map(lock_all, range(8))) == [{""}] * 8


@without_redis
async def test_control_unsorted_locks_deadlock(crowd: Crowd[Shop], database: Database) -> None:
    one, two = [await crowd.turn(0).product(1) for _ in range(2)]
    meeting = Rendezvous()
    ends = await asyncio.gather(
        end_of(database, lock([one]), lock([two]), meeting=meeting),
        end_of(database, lock([two]), lock([one]), meeting=meeting),
    )
    assert sorted(ends) == ["", DEADLOCK]


# -- oversell, guard by guard --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "stock"),
    # With one piece, any two orders that meet sell too much.
    [("lock", STOCK), ("version", STOCK), ("constraint", 1), ("none", 1)],
    ids=["lock", "version", "constraint", "none"],
)
@without_redis
async def test_each_guard_alone_keeps_the_stock_right(
    crowd: Crowd[Shop], monkeypatch: pytest.MonkeyPatch, guard: str, stock: int
) -> None:
    """Without guards more is sold than there is."""
    tea = await crowd.turn(0).product(stock)
    if guard != "lock":
        forget_row_locks(monkeypatch)
        meeting = meet_after(monkeypatch, product_store, "lock")
    if guard != "version":
        forget_versions(monkeypatch)
    if guard != "constraint":
        drop_constraint(crowd, STOCK_NOT_OVERSOLD)
    outcomes = await order_all(crowd, {tea: 1})
    assert guard == "lock" or meeting.met
    if guard == "none":
        assert outcomes["ORDERED"] > 1
        assert ordered(crowd, tea) > 1
    else:
        assert outcomes == {"ORDERED": stock, "OUT_OF_STOCK": RIVALS - stock}
        assert ordered(crowd, tea) == reserved(crowd, tea) == stock


# -- one request many times ----------------------------------------------------------------------


async def order_again_and_again(crowd: Crowd[Shop], product_id: str) -> Results:
    request = create_order("ann", {product_id: 1}, "o1")
    return await crowd.race("orders.CreateOrder", [request] * RIVALS, until_final=True)


async def test_a_request_sent_a_hundred_times_makes_one_order(crowd: Crowd[Shop]) -> None:
    tea = await crowd.turn(0).product(1_000)
    responses, refusals = await order_again_and_again(crowd, tea)
    assert not refusals
    assert len({each.order.order_id for each in responses}) == 1
    assert sum(not each.replayed for each in responses) == 1
    assert await crowd.turn(0).stock(tea) == (999, 1, 0)


@without_redis
@pytest.mark.parametrize("constraint", [True, False], ids=["constraint", "none"])
async def test_the_constraint_alone_lets_a_request_make_one_order(
    crowd: Crowd[Shop], monkeypatch: pytest.MonkeyPatch, *, constraint: bool
) -> None:
    tea = await crowd.turn(0).product(1_000)
    forget_records(monkeypatch)
    if not constraint:
        drop_constraint(crowd, ORDER_REQUEST_ONCE)
    responses, refusals = await order_again_and_again(crowd, tea)
    made = 1 if constraint else RIVALS
    assert len({each.order.order_id for each in responses}) == reserved(crowd, tea) == made
    assert refusals == ({"REQUEST_ID_REUSED": RIVALS - 1} if constraint else {})


# -- carts ---------------------------------------------------------------------------------------


@without_redis
async def test_of_a_hundred_changes_from_one_version_one_is_made(crowd: Crowd[Shop]) -> None:
    tea = await crowd.turn(0).product(1)
    for version in range(2):
        quantities = range(200 * version + 1, 200 * version + 1 + RIVALS)
        changes = [set_item("ann", tea, each, expected_version=version) for each in quantities]
        (changed,), refusals = await crowd.race("carts.SetCartItem", changes, until_final=True)
        assert refusals == {"CART_CHANGED": RIVALS - 1}
        assert changed.cart.version == version + 1
        assert await crowd.turn(0).cart("ann") == changed.cart


async def add_one(shop: Shop, product_id: str, meeting: Rendezvous, *, with_version: bool) -> None:
    """A tab that reads the cart and puts one more of the product in."""
    while True:
        cart = await shop.cart("ann")
        quantity = next((item.quantity for item in cart.items), 0) + 1
        await meeting.come()
        expected = cart.version if with_version else None
        request = set_item("ann", product_id, quantity, expected_version=expected)
        if await outcome(shop.carts.SetCartItem(request)) != "CART_CHANGED":
            return


@without_redis
@pytest.mark.parametrize("with_version", [True, False], ids=["version", "control-no-version"])
async def test_two_tabs_that_send_the_version_lose_no_change(
    crowd: Crowd[Shop], with_version: bool
) -> None:
    tea = await crowd.turn(0).product(1)
    for _ in range(50):
        meeting = Rendezvous()
        await asyncio.gather(
            *(add_one(shop, tea, meeting, with_version=with_version) for shop in crowd.clients)
        )
        assert meeting.met
    (item,) = (await crowd.turn(0).cart("ann")).items
    assert item.quantity == (100 if with_version else 50)


@without_redis
async def test_changes_of_different_lines_are_all_kept(
    crowd: Crowd[Shop],
) -> None:
    lines = {await crowd.turn(0).product(1): quantity for quantity in range(1, 51)}
    changes = [set_item("ann", product_id, quantity) for product_id, quantity in lines.items()]
    results = await crowd.race("carts.SetCartItem", changes, until_final=True)
    assert not results.refusals
    cart = await crowd.turn(0).cart("ann")
    assert {item.product_id: item.quantity for item in cart.items} == lines
    assert cart.version == 50
