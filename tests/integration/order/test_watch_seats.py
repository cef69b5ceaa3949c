"""WatchSeats: the map now, then each change by any replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from common.db.database import open_pools
from common.errors import DatabaseUnavailable
from deploy.local.postgres_roles import ServiceUrls
from order_service.model.seat import MapSeat, SeatState
from order_service.settings import OrderSettings
from order_service.store import seat as store
from order_service.use_cases import seat_watch
from order_service.wiring import build
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, open_shop
from tests.support.refusals import outcome, refused
from tests.support.replicas import channel, replicas
from tests.support.seats import STATES, SeatMap, add_seats, labels, order_seats, seat_map, seated


class SeatStates:
    """What a follower of ``SeatWatches`` knows."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.version = 0

    def add(self, change: seat_watch.Change) -> None:
        seats, version = change
        self.states |= {seat.label: seat.state.value for seat in seats}
        self.version = version or self.version


def watch(shop: Shop, product_id: str, after: int | None = None) -> Any:
    return shop.seats.WatchSeats(pb.WatchSeatsRequest(product_id=product_id, after_version=after))


async def until(changes: Any, version: int) -> SeatMap:
    """The map that the stream's messages make, up to this version of the product."""
    known = SeatMap()
    while known.version < version:
        known.add(await changes.read())
    return known


async def version_of(shop: Shop, product_id: str) -> int:
    got = await shop.products.GetProduct(pb.GetProductRequest(product_id=product_id))
    return int(got.product.version)


async def test_followers_on_every_replica_get_the_map_and_each_change(shop: Shop) -> None:
    show = await seated(shop, labels(4))
    made = (await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))).order
    # Calls go to the replicas in turns: some follow where the change is made, some elsewhere.
    streams = [watch(shop, show) for _ in range(4)]
    for stream in streams:
        (message,) = [await stream.read()]
        assert message.version == 3
        states = {seat.label: (STATES[seat.state], seat.version) for seat in message.seats}
        free = dict.fromkeys(labels(4)[1:], ("FREE", 2))
        assert states == {"A-0000": ("RESERVED", 3), **free}
    await shop.orders.CreateOrder(order_seats("bob", {show: labels(4)[2:]}))
    await shop.orders.CancelOrder(cancel(made, "c1"))
    await shop.products.AddSeats(add_seats(show, ["B"], "s2"))
    for stream in streams:
        known = await until(stream, 6)
        assert known.states == {
            "A-0000": "FREE",
            "A-0002": "RESERVED",
            "A-0003": "RESERVED",
            "B": "FREE",
        }, "only what changed"
        stream.cancel()


async def test_a_large_map_comes_in_parts_and_the_last_has_the_version(shop: Shop) -> None:
    show = await seated(shop, labels(1_000))
    await shop.products.AddSeats(add_seats(show, labels(1_000, "B"), "s2"))
    await shop.products.AddSeats(add_seats(show, labels(300, "C"), "s3"))
    stream = watch(shop, show)
    parts = [await stream.read() for _ in range(3)]
    assert [len(part.seats) for part in parts] == [1_000, 1_000, 300]
    assert [part.version for part in parts] == [0, 0, 4]
    stream.cancel()
    # Resumed: what changed since.
    resumed = watch(shop, show, after=3)
    (part,) = [await resumed.read()]
    assert [seat.label for seat in part.seats] == labels(300, "C")
    assert part.version == 4
    resumed.cancel()


@pytest.mark.parametrize(("after", "count"), [(2, 0), (3, 4), (2**63 - 1, 4), (0, 4)])
async def test_after_a_version_that_is_ahead_the_whole_map_is_sent(
    shop: Shop, after: int, count: int
) -> None:
    show = await seated(shop, labels(4))
    stream = watch(shop, show, after=after)
    message = await stream.read()
    assert (len(message.seats), message.version) == (count, 2)
    stream.cancel()


async def test_a_product_without_seats_has_an_empty_map_until_it_gets_some(shop: Shop) -> None:
    tea = await shop.product(0)
    streams = [watch(shop, tea) for _ in range(2)]
    for stream in streams:
        message = await stream.read()
        assert (len(message.seats), message.version) == (0, 1)
    await shop.products.AddSeats(add_seats(tea, labels(2), "s1"))
    for stream in streams:
        assert (await until(stream, 2)).states == dict.fromkeys(labels(2), "FREE")
        stream.cancel()
    with refused("PRODUCT_NOT_FOUND"):
        await watch(shop, "nonsense").read()


async def test_changes_of_other_replicas_and_own_ones_make_the_same_map(shop: Shop) -> None:
    show = await seated(shop, labels(60))
    streams = [watch(shop, show) for _ in range(2)]
    orders = [order_seats(f"u{one}", {show: [label]}) for one, label in enumerate(labels(60))]
    made = await asyncio.gather(*map(shop.orders.CreateOrder, orders))
    await asyncio.gather(*(shop.orders.CancelOrder(cancel(each.order, "c")) for each in made[::2]))
    version = await version_of(shop, show)
    assert version == 2 + 60 + 30
    for stream in streams:
        known = await until(stream, version)
        assert known.states == await seat_map(shop, show)
        stream.cancel()


@pytest.fixture
async def watches(order_database: ServiceUrls) -> AsyncIterator[seat_watch.SeatWatches]:
    """The followers of one more replica, whose rounds the test makes itself."""
    database = open_pools(order_database.runtime, application_name="watch", pool_size=3)
    yield seat_watch.SeatWatches(database, streams_max=100)
    await database.close()


async def test_a_slow_reader_gets_the_latest_state_of_each_seat(
    shop: Shop, watches: seat_watch.SeatWatches
) -> None:
    show = await seated(shop, labels(2))
    follower = watches.follow(show, None)
    seats, version = await anext(follower)
    assert (len(seats), version) == (2, 2)
    for _ in range(3):  # while the reader is busy
        made = (await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))).order
        await watches.poll()
        await shop.orders.CancelOrder(cancel(made, made.order_id[-12:]))
        await watches.poll()
    seats, version = await anext(follower)
    assert [(seat.label, seat.state, seat.version) for seat in seats] == [("A-0000", "FREE", 8)]
    assert version == 8
    await follower.aclose()
    assert not watches._watched


async def test_a_reader_far_behind_gets_its_changes_from_the_database(
    shop: Shop, watches: seat_watch.SeatWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for one that never reads is bounded; what it gets is complete."""
    monkeypatch.setattr(seat_watch, "CHANGES_MAX", 5)
    monkeypatch.setattr(seat_watch, "MESSAGE_SEATS_MAX", 2)
    show = await seated(shop, labels(1))
    stalled, quick = watches.follow(show, None), watches.follow(show, None)
    maps = [SeatStates(), SeatStates()]
    for follower, known in zip((stalled, quick), maps, strict=True):
        known.add(await anext(follower))
    for number in range(4):
        await shop.products.AddSeats(add_seats(show, labels(3, str(number)), f"s{number}"))
        await watches.poll()
        assert len(watches._watched[show]._seats) <= 5
        while maps[1].version < watches._watched[show].known:
            maps[1].add(await anext(quick))
    await shop.orders.CreateOrder(order_seats("ann", {show: ["0-0001", "3-0001"]}))
    await watches.poll()
    for follower, known in zip((stalled, quick), maps, strict=True):
        while known.version < 7:
            seats, version = await anext(follower)
            assert len(seats) <= 2
            known.add((seats, version))
        assert known.states == await seat_map(shop, show)
        await follower.aclose()


async def test_a_reader_that_leaves_off_in_a_message_misses_nothing(
    shop: Shop, watches: seat_watch.SeatWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seats of the version that it got in part are forgotten before the rest is sent."""
    monkeypatch.setattr(seat_watch, "CHANGES_MAX", 3)
    monkeypatch.setattr(seat_watch, "MESSAGE_SEATS_MAX", 2)
    show = await seated(shop, labels(1))
    follower, known = watches.follow(show, None), SeatStates()
    known.add(await anext(follower))
    for number in range(3):
        await shop.products.AddSeats(add_seats(show, labels(3, str(number)), f"s{number}"))
        await watches.poll()
        known.add(await anext(follower))
        assert known.version == 2
    while known.version < 5:
        known.add(await anext(follower))
    assert known.states == await seat_map(shop, show)
    await follower.aclose()


async def test_for_a_stream_that_is_never_read_the_server_stops_producing(
    order_database: ServiceUrls, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has produced waits in the client's window and the server's buffers, no more."""
    produced = 0

    async def endless(*_: object) -> AsyncGenerator[seat_watch.Change]:
        nonlocal produced
        seats = [MapSeat(label, SeatState.FREE, 1) for label in labels(1_000)]
        while True:
            yield seats, None
            produced += 1

    monkeypatch.setattr(seat_watch.SeatWatches, "_read_map", endless)
    urls = {"database_url": order_database.runtime, "redis_url": redis_url}
    async with open_shop(1, **urls) as shop:
        show = await seated(shop, labels(1))
        stream = watch(shop, show)
        await stream.read()
        before = -1
        while before != produced:
            before = produced
            for _ in range(100):
                await version_of(shop, show)
        # Of 19 kB each: the client's window may grow to some MB.
        assert produced < 1_000
        stream.cancel()


async def test_a_hundred_followers_cost_one_statement_a_round(
    shop: Shop, watches: seat_watch.SeatWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = [await seated(shop, labels(2)) for _ in range(10)]
    followers = [watches.follow(show, None) for show in shows for _ in range(10)]
    for follower in followers:
        await anext(follower)
    asked: list[int] = []

    async def counted(connection: Any, known: Any, *, size: int) -> Any:
        asked.append(len(known))
        return await read_changes(connection, known, size=size)

    read_changes = store.read_changes
    monkeypatch.setattr(store, "read_changes", counted)
    await watches.poll()
    await shop.orders.CreateOrder(order_seats("ann", {show: labels(2) for show in shows[:3]}))
    await watches.poll()
    assert asked == [10, 10]
    for follower in followers[:30]:
        seats, version = await anext(follower)
        assert (len(seats), version) == (2, 3)
    for follower in followers:
        await follower.aclose()


async def test_a_change_of_more_seats_than_a_read_has_is_complete(
    shop: Shop, watches: seat_watch.SeatWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat_watch, "ROUND_SEATS_MAX", 5)
    monkeypatch.setattr(seat_watch, "MESSAGE_SEATS_MAX", 3)
    show = await seated(shop, labels(1))
    follower = watches.follow(show, None)
    await anext(follower)
    for number in range(4):
        await shop.products.AddSeats(add_seats(show, labels(4, str(number)), f"s{number}"))
    await watches.poll()
    got = [await anext(follower) for _ in range(6)]
    assert [len(seats) for seats, _ in got] == [3] * 5 + [1]
    assert [version for _, version in got] == [None] * 5 + [6]
    await follower.aclose()


async def test_a_map_that_is_left_in_the_middle_is_closed_at_once(
    shop: Shop, watches: seat_watch.SeatWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    async def parts(*_: object) -> AsyncIterator[seat_watch.Change]:
        try:
            yield [], None
        finally:
            closed.append(True)

    monkeypatch.setattr(watches, "_read_map", parts)
    follower = watches.follow(await seated(shop, labels(1)), None)
    await anext(follower)
    await follower.aclose()
    assert closed


async def test_streams_of_seats_are_bounded_and_leave_slots_to_orders(
    order_database: ServiceUrls, redis_url: str
) -> None:
    urls = {"database_url": order_database.runtime, "redis_url": redis_url}
    async with open_shop(1, max_concurrent_calls=4, **urls) as shop:
        show = await seated(shop, labels(2))
        made = (await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))).order
        streams = [watch(shop, show) for _ in range(2)]
        for stream in streams:
            await stream.read()
        with refused("OVERLOADED"):
            await watch(shop, show).read()
        order = shop.orders.WatchOrder(pb.WatchOrderRequest(order_id=made.order_id, user_id="ann"))
        assert (await order.read()).order == made
        order.cancel()
        streams[0].cancel()
        await until_accepted(shop, show)
        streams[1].cancel()


async def until_accepted(shop: Shop, show: str) -> None:
    """A stream that has ended leaves its place."""
    while True:
        stream = watch(shop, show)
        if await outcome(stream.read()) != "OVERLOADED":
            break
        await asyncio.sleep(0.01)
    stream.cancel()


@pytest.mark.parametrize(
    ("streams", "pause_s"), [(0, 0.02), (40, 0.02), (200, 0.1), (500, 0.25), (9_000, 0.25)]
)
def test_the_pause_between_rounds_grows_with_the_streams(streams: int, pause_s: float) -> None:
    no_database: Any = None
    watches = seat_watch.SeatWatches(no_database, streams_max=10_000)
    watches._streams = streams
    assert watches._pause_s == pytest.approx(pause_s)


async def test_a_failover_that_lost_changes_ends_the_stream(
    shop: Shop, watches: seat_watch.SeatWatches, sql: Callable[[str], str]
) -> None:
    """A client that resumes gets the whole map."""
    show, other = [await seated(shop, labels(2)) for _ in range(2)]
    await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))
    follower, of_other = watches.follow(show, None), watches.follow(other, None)
    assert [(await anext(each))[1] for each in (follower, of_other)] == [3, 2]
    sql(
        "UPDATE products SET version = 2, seats_version = 2, reserved = 0;"
        "UPDATE seats SET version = 2, state = 'FREE', order_id = NULL"
    )
    await watches.poll()
    with pytest.raises(DatabaseUnavailable):
        await anext(follower)
    assert [*watches._watched] == [other]
    resumed = watches.follow(show, 3)
    seats, version = await anext(resumed)
    assert ([seat.state for seat in seats], version) == (["FREE"] * 2, 2)
    for each in (resumed, of_other):
        await each.aclose()


async def test_a_drain_ends_the_stream(order_database: ServiceUrls, redis_url: str) -> None:
    urls = {"database_url": order_database.runtime, "redis_url": redis_url}
    async with AsyncExitStack() as server:
        addresses = await server.enter_async_context(replicas(1, OrderSettings, build, **urls))
        async with channel(*addresses) as opened:
            shop = Shop.at(opened)
            stream = watch(shop, await seated(shop, labels(1)))
            await stream.read()
            await server.aclose()
            with refused("REPLICA_STOPPING"):
                await stream.read()
