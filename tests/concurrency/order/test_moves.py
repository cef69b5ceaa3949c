"""Cancellation against expiry, and against itself: one wins, and the stock comes back once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from order_service.store import order as order_store
from order_service.store import product as product_store
from order_service.tables import STOCK_NOT_NEGATIVE
from tally.order.v1 import order_pb2 as pb
from tests.support.crowd import RIVALS, Crowd
from tests.support.guards import forget_row_locks
from tests.support.orders import (
    Shop,
    cancel,
    drop_constraint,
    forget_versions,
    reserved,
    sweeper,
)
from tests.support.refusals import final_outcome
from tests.support.rendezvous import meet_after

ALL_OVERDUE = "UPDATE orders SET expire_time = now()"


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Moves of an order take no lock in Redis."""
    return ""


async def test_of_cancel_and_expiry_exactly_one_wins(crowd: Crowd[Shop]) -> None:
    shop = crowd.turn(0)
    tea, cup = [await shop.product(10 * RIVALS) for _ in range(2)]
    lines = [{tea: 1, cup: 2}, {cup: 2, tea: 1}]
    made = await asyncio.gather(
        *(crowd.turn(number).order(f"u{number}", lines[number % 2]) for number in range(RIVALS))
    )
    crowd.sql(ALL_OVERDUE)
    async with sweeper(crowd.urls) as one, sweeper(crowd.urls) as two:
        cancelled, first, second = await asyncio.gather(
            crowd.race(
                "orders.CancelOrder", [cancel(each, "x") for each in made], until_final=True
            ),
            one.expire_due(),
            two.expire_due(),
        )
    assert cancelled.refusals.keys() <= {"ORDER_NOT_CANCELLABLE"}
    assert len(cancelled.responses) + first + second == RIVALS
    states = Counter([(await shop.get(each)).state for each in made])
    assert states[pb.Order.STATE_CANCELLED] == len(cancelled.responses)
    assert states[pb.Order.STATE_EXPIRED] == first + second
    assert crowd.number("SELECT count(*) FROM orders WHERE version = 2") == RIVALS
    for product_id in (tea, cup):
        assert await crowd.turn(1).stock(product_id) == (10 * RIVALS, 0, 0)


@pytest.mark.parametrize("guard", ["lock", "version", "none"])
async def test_each_guard_alone_lets_cancel_or_expiry_win(
    crowd: Crowd[Shop], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """Without guards both win, and the stock comes back twice."""
    if guard != "lock":
        forget_row_locks(monkeypatch)
    if guard != "version":
        forget_versions(monkeypatch)
    drop_constraint(crowd, STOCK_NOT_NEGATIVE)
    shop = crowd.turn(0)
    tea = await shop.product(10)
    made = await shop.order("ann", {tea: 1})
    crowd.sql(ALL_OVERDUE)
    # With locks, one of the two finds the order locked; else both read order and product.
    meeting = meet_after(monkeypatch, order_store if guard == "lock" else product_store, "lock")
    async with sweeper(crowd.urls) as one:
        cancelled, expired = await asyncio.gather(
            final_outcome(lambda: shop.orders.CancelOrder(cancel(made, "x"))), one.expire_due()
        )
    assert meeting.met
    if guard == "none":
        assert cancelled.order.state == pb.Order.STATE_CANCELLED
        assert expired == 1
        assert reserved(crowd, tea) == -1
    else:
        assert (expired == 1) is (cancelled == "ORDER_NOT_CANCELLABLE")
        assert reserved(crowd, tea) == 0
        assert crowd.number("SELECT max(version) FROM orders") == 2


async def test_a_hundred_cancellations_of_an_order_give_its_stock_back_once(
    crowd: Crowd[Shop],
) -> None:
    shop = crowd.turn(0)
    tea = await shop.product(10)
    made = await shop.order("ann", {tea: 3})
    requests = [cancel(made, f"x{number}") for number in range(RIVALS)]
    responses, refusals = await crowd.race("orders.CancelOrder", requests, until_final=True)
    assert not refusals
    assert {each.order.version for each in responses} == {2}
    assert {each.order.state for each in responses} == {pb.Order.STATE_CANCELLED}
    assert await crowd.turn(1).stock(tea) == (10, 0, 0)
