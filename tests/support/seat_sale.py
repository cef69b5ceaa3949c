"""A sale of seats: crowds that want the same ones, and what must be true afterwards."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from tally.order.v1 import order_pb2 as pb
from tests.support.crowd import Crowd
from tests.support.orders import Shop
from tests.support.refusals import Results
from tests.support.seats import labels, order_seats, seat_map, seated


def blocks(show: str, count: int, users: int, seed: int) -> Iterator[pb.CreateOrderRequest]:
    """An order of each user for 1 to 4 neighbouring seats of ``count``, in either direction."""
    chosen = random.Random(seed)
    of = labels(count)
    for user in range(users):
        size = chosen.randint(1, 4)
        first = chosen.randint(0, count - size)
        yield order_seats(
            f"user-{user}", {show: of[first : first + size][:: chosen.choice((1, -1))]}
        )


async def sell_blocks(crowd: Crowd[Shop], *, count: int, users: int) -> None:
    """Let the users race for the seats; each seat goes to one, and nobody is refused in vain."""
    show = await seated(crowd.turn(0), labels(count))
    requests = list(blocks(show, count, users, seed=count))
    outcomes = await crowd.outcomes("orders.CreateOrder", requests)
    made = [each.order for each in outcomes if not isinstance(each, str)]
    refusals = Counter(each for each in outcomes if isinstance(each, str))
    assert refusals == {"SEAT_TAKEN": users - len(made)}
    taken = Counter(label for order in made for label in order.items[0].seats)
    assert set(taken.values()) == {1}, "a seat in two orders"
    assert await states(crowd, show) == {
        **dict.fromkeys(labels(count), "FREE"),
        **dict.fromkeys(taken, "RESERVED"),
    }
    # Nobody is refused for free seats: an order that was refused wants one that another has.
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, str):
            assert taken.keys() & set(request.items[0].seats)
    assert_consistent(crowd, show, len(taken))


async def states(crowd: Crowd[Shop], show: str) -> dict[str, str]:
    """The state of each seat, by label."""
    return await seat_map(crowd.turn(1), show)


def assert_consistent(crowd: Crowd[Shop], show: str, taken: int) -> None:
    """Product, seats and orders count the same."""
    of_product = f"WHERE product_id = '{show}'"
    assert [
        crowd.number(f"SELECT reserved FROM products {of_product}"),
        crowd.number(f"SELECT count(*) FROM seats {of_product} AND state = 'RESERVED'"),
        crowd.number(f"SELECT count(*) FROM order_seats {of_product} AND live"),
        crowd.number(f"SELECT coalesce(sum(quantity), 0) FROM order_items {of_product}"),
    ] == [taken] * 4


async def want_one(crowd: Crowd[Shop], show: str, label: str, users: int) -> Results:
    """All users order the same seat at once."""
    requests = [order_seats(f"user-{user}", {show: [label]}) for user in range(users)]
    return await crowd.race("orders.CreateOrder", requests, until_final=True)


def holders(crowd: Crowd[Shop], show: str, label: str) -> int:
    """How many orders have the seat."""
    return crowd.number(
        f"SELECT count(*) FROM order_seats WHERE product_id = '{show}' AND label = '{label}'"
        " AND live"
    )
