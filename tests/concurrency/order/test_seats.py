"""Seats before a crowd: each goes to one order, and an order gets all of its seats or none.

Every race has its control, and each guard alone holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from redis.asyncio import Redis

from common.batching.outcomes import Limits
from common.db.database import Database
from common.db.statements import Connection
from common.db.writes import execute_together
from common.locking.redis_lock import open_locks
from order_service.model.seat import SeatKey
from order_service.store import seat as seat_store
from order_service.tables import SEAT_LIVE_ONCE
from tests.support.crowd import RIVALS, Crowd, without_redis
from tests.support.guards import forget_row_locks
from tests.support.lock_steps import DEADLOCK, Step, database, end_of
from tests.support.orders import Shop, cancel, forget_versions
from tests.support.rendezvous import Rendezvous, meet_after
from tests.support.seat_sale import assert_consistent, holders, sell_blocks, states, want_one
from tests.support.seats import add_seats, forget_seat_versions, labels, order_seats, seated
from tests.support.time_limits import LONG_S

__all__ = ["database"]


async def test_of_a_hundred_users_one_gets_the_seat(crowd: Crowd[Shop]) -> None:
    show = await seated(crowd.turn(0), labels(3))
    (made,), refusals = await want_one(crowd, show, "A-0001", RIVALS)
    assert refusals == {"SEAT_TAKEN": RIVALS - 1}
    assert list(made.order.items[0].seats) == ["A-0001"]
    assert await states(crowd, show) == {"A-0000": "FREE", "A-0001": "RESERVED", "A-0002": "FREE"}
    assert_consistent(crowd, show, 1)


async def test_blocks_in_opposite_orders_are_sold_once(crowd: Crowd[Shop]) -> None:
    await sell_blocks(crowd, count=60, users=200)


async def test_a_seat_changes_hands_once_at_a_time(crowd: Crowd[Shop]) -> None:
    """Orders are cancelled while others want their seats."""
    show = await seated(crowd.turn(0), labels(2))

    async def order_and_cancel(user: int) -> int:
        got = 0
        for number in range(5):
            request = order_seats(f"user-{user}", {show: labels(2)[:: 1 - 2 * (user % 2)]})
            made = await crowd.call(user + number, "orders.CreateOrder", request)
            if not isinstance(made, str):
                await crowd.call(user, "orders.CancelOrder", cancel(made.order, f"c{number}"))
                got += 1
        return got

    counts = await asyncio.gather(*map(order_and_cancel, range(20)))
    assert sum(counts) >= 1
    assert await states(crowd, show) == dict.fromkeys(labels(2), "FREE")
    of_show = f"WHERE product_id = '{show}'"
    assert crowd.number(f"SELECT reserved FROM products {of_show}") == 0
    assert crowd.number(f"SELECT count(*) FROM order_seats {of_show} AND live") == 0
    version = crowd.number(f"SELECT version FROM products {of_show}")
    assert version == 2 + 2 * sum(counts)
    assert crowd.number(f"SELECT max(version) FROM seats {of_show}") == version


async def test_of_a_hundred_calls_that_add_a_seat_one_does(crowd: Crowd[Shop]) -> None:
    show = await crowd.turn(0).product(0)
    requests = [add_seats(show, ["A-1", f"B-{call}"], f"s{call}") for call in range(RIVALS)]
    (added,), refusals = await crowd.race("products.AddSeats", requests, until_final=True)
    assert refusals == {"SEAT_EXISTS": RIVALS - 1}
    assert (added.product.stock, len(await states(crowd, show))) == (2, 2)


# -- guard by guard ------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", ["lock", "version", "unique", "none"])
@without_redis
async def test_each_guard_alone_gives_a_seat_to_one(
    crowd: Crowd[Shop], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """Without guards, the lock of the product included, a seat is sold twice."""
    show = await seated(crowd.turn(0), labels(9))  # enough stock for all who meet
    if guard != "lock":
        forget_row_locks(monkeypatch)
        meeting = meet_after(monkeypatch, seat_store, "find")
    forget_versions(monkeypatch)
    if guard != "version":
        forget_seat_versions(monkeypatch)
    if guard != "unique":
        crowd.sql(f"DROP INDEX {SEAT_LIVE_ONCE}")
    responses, refusals = await want_one(crowd, show, "A-0004", RIVALS)
    assert guard == "lock" or meeting.met
    assert refusals == {"SEAT_TAKEN": RIVALS - len(responses)}
    if guard == "none":
        assert len(responses) == holders(crowd, show, "A-0004") == 2
    else:
        assert len(responses) == holders(crowd, show, "A-0004") == 1
        assert_consistent(crowd, show, 1)


# -- deadlocks -----------------------------------------------------------------------------------


async def test_seats_of_two_products_named_in_opposite_orders_are_all_ordered(
    crowd: Crowd[Shop],
) -> None:
    one, two = [await seated(crowd.turn(0), labels(RIVALS)) for _ in range(2)]
    requests = [
        order_seats(f"user-{user}", {show: [label] for show in ((one, two), (two, one))[user % 2]})
        for user, label in enumerate(labels(RIVALS))
    ]
    responses, refusals = await crowd.race("orders.CreateOrder", requests)
    assert (len(responses), not refusals) == (RIVALS, True)
    for show in (one, two):
        assert_consistent(crowd, show, RIVALS)


def write(keys: Sequence[SeatKey]) -> Step:
    """A step that writes seats in this order, without the lock of their products."""

    async def step(connection: Connection) -> None:
        found = await seat_store.find(connection, keys)
        # Unchanged: whoever comes later finds the version that it has read.
        await execute_together(
            connection, seat_store.saving([(found[key], found[key]) for key in keys])
        )

    return step


@without_redis
async def test_seats_are_written_in_one_order_however_they_are_named(
    crowd: Crowd[Shop], database: Database
) -> None:
    """Their products' locks are missing."""
    keys = [SeatKey(await seated(crowd.turn(0), [label]), label) for label in labels(8)]

    async def write_all(number: int) -> set[str]:
        named = keys if number % 2 else keys[::-1]
        return {await end_of(database, write(named)) for _ in range(20)}

    assert await asyncio.gather(*map(write_all, range(8))) == [{""}] * 8


@without_redis
async def test_control_seats_that_are_written_apart_deadlock(
    crowd: Crowd[Shop], database: Database
) -> None:
    one, two = [SeatKey(await seated(crowd.turn(0), ["A"]), "A") for _ in range(2)]
    meeting = Rendezvous()
    ends = await asyncio.gather(
        end_of(database, write([one]), write([two]), meeting=meeting),
        end_of(database, write([two]), write([one]), meeting=meeting),
    )
    assert sorted(ends) == ["", DEADLOCK]


# -- the Redis lock ------------------------------------------------------------------------------


async def value_of(redis: Redis, key: str) -> str:
    value = await redis.get(key)
    assert isinstance(value, bytes)
    return value.decode()


@pytest.mark.parametrize("redis_url", ["redis"], indirect=True)
async def test_a_holder_that_says_nothing_delays_an_order_and_refuses_none(
    crowd: Crowd[Shop], redis_url: str
) -> None:
    show = await seated(crowd.turn(0), labels(2))
    held = f"seat:{{{show}}}:A-0000"
    async with Redis.from_url(redis_url) as redis:
        await redis.set(held, "another replica", px=60_000)
        for request in (
            order_seats("ann", {show: ["A-0000"]}),
            order_seats("bob", {show: ["A-0001"]}),
        ):
            await crowd.turn(0).orders.CreateOrder(request)
        assert (await value_of(redis, held)).startswith("another replica")
    assert_consistent(crowd, show, 2)


@pytest.fixture
def patient_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes in which a command waits for a busy lock as long as a test may last, as leases do."""
    monkeypatch.setattr("common.batching.lane.Limits", partial(Limits, busy_key_s=LONG_S))
    monkeypatch.setattr("common.locking.redis_lock.LEASE_MS", int(LONG_S * 1_000))


@pytest.mark.usefixtures("patient_lanes")
@pytest.mark.parametrize("redis_url", ["redis"], indirect=True)
async def test_who_waits_for_a_seat_hears_of_its_release(
    redis_url: str, crowd: Crowd[Shop]
) -> None:
    """In every replica, and again of the release by the one who got it: nobody waits longer."""
    show = await seated(crowd.turn(0), labels(3))
    held, other = (f"seat:{{{show}}}:{label}" for label in labels(2))
    async with open_locks(redis_url) as locks, Redis.from_url(redis_url) as redis:
        grant = await locks.acquire([(held,)])
        requests = [
            order_seats(f"user-{user}", {show: labels(2)[:: 1 - 2 * (user % 2)]})
            for user in range(RIVALS)
        ]
        calls = asyncio.ensure_future(crowd.race("orders.CreateOrder", requests))
        async with asyncio.timeout(LONG_S):
            while (await value_of(redis, held)).count("|") < len(crowd.clients):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        # Who waits holds none of its other keys: another user orders the seat beside it.
        assert await redis.exists(other) == 0
        await crowd.turn(1).orders.CreateOrder(order_seats("ann", {show: [labels(3)[2]]}))
        await locks.release(grant)
        made, refusals = await asyncio.wait_for(calls, LONG_S)
    assert (len(made), refusals) == (1, {"SEAT_TAKEN": RIVALS - 1})
    assert_consistent(crowd, show, 3)
