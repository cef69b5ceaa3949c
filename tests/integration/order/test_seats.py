"""Seats as a client sees them: added, ordered, given back, listed and refused."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa

from common.db.statements import Connection, Parameters, Rows, compiled
from order_service.model.seat import SeatKey
from order_service.store import seat as seat_store
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, cancel, create_order, fresh, pay, restock
from tests.support.refusals import refused
from tests.support.seats import add_seats, labels, order_seats, seat_map, seated
from tests.support.stack import Stack

LONGEST = [f"{number:03}" + "é" * 14 + "x" for number in range(1_000)]
"""Labels of 32 bytes."""


# -- adding --------------------------------------------------------------------------------------


async def test_seats_are_the_stock_of_their_product(shop: Shop) -> None:
    product_id = await shop.product(0)
    request = add_seats(product_id, ["B 2", "A-1", "1층/가.9:_"], "s1")
    product = (await shop.products.AddSeats(request)).product
    assert (product.stock, product.seated, product.version) == (3, True, 2)
    again = await shop.products.AddSeats(add_seats(product_id, ["A-1", "1층/가.9:_", "B 2"], "s1"))
    assert (again.replayed, again.product) == (True, product)
    more = (await shop.products.AddSeats(add_seats(product_id, ["A-2"], "s2"))).product
    assert (more.stock, more.version) == (4, 3)
    # Ascending by their bytes.
    assert list((await seat_map(shop, product_id)).items()) == [
        *(("1층/가.9:_", "FREE"), ("A-1", "FREE"), ("A-2", "FREE"), ("B 2", "FREE"))
    ]


async def test_existing_labels_are_all_named_and_nothing_is_added(shop: Shop) -> None:
    product_id = await seated(shop, ["A-1", "A-2", "A-3"])
    with refused("SEAT_EXISTS") as ended:
        await shop.products.AddSeats(add_seats(product_id, ["B-1", "A-3", "A-1"], "s2"))
    assert [one.subject for one in ended.refusal.quota] == ["A-3", "A-1"]
    assert len(await seat_map(shop, product_id)) == 3
    # Another product may have a seat of the same name.
    await seated(shop, ["A-1"])


async def test_many_existing_labels_are_named_by_their_positions(shop: Shop) -> None:
    product_id = await shop.product(0)
    every_other = [one for number, one in enumerate(LONGEST) if number % 3]
    await shop.products.AddSeats(add_seats(product_id, every_other, "s1"))
    for _ in range(5):  # trailers that are too large are lost now and then
        with refused("SEAT_EXISTS") as ended:
            await shop.products.AddSeats(add_seats(product_id, LONGEST, "s2"))
    named = ",".join(one.description for one in ended.refusal.quota)
    expected = ",".join(f"{n}-{n + 1}" if n < 998 else str(n) for n in range(1, 1_000, 3))
    assert named == expected
    assert {one.subject for one in ended.refusal.quota} == {"labels"}


async def test_stock_that_is_not_seats_stays_so(shop: Shop) -> None:
    tea, show = await shop.product(1), await seated(shop, ["A-1"])
    with refused("PRODUCT_NOT_SEATED"):
        await shop.products.AddSeats(add_seats(tea, ["A-1"], "s1"))
    with refused("PRODUCT_SEATED"):
        await shop.products.RestockProduct(restock(show, 1, "r1"))
    assert (await shop.stock(tea), await shop.stock(show)) == ((1, 0, 0), (1, 0, 0))
    assert await seat_map(shop, tea) == {}


async def test_repeat_after_its_answer_is_deleted_is_refused(
    shop: Shop, sql: Callable[[str], str]
) -> None:
    product_id = await shop.product(0)
    await shop.products.AddSeats(add_seats(product_id, ["A-1"], "s1"))
    sql("DELETE FROM answers")
    for of in (["A-1"], ["A-2"]):
        with refused("REQUEST_ID_REUSED"):
            await shop.products.AddSeats(add_seats(product_id, of, "s1"))
    assert await shop.stock(product_id) == (1, 0, 0)


async def test_a_label_of_another_form_is_named(shop: Shop) -> None:
    product_id = await seated(shop, ["A-1"])
    for label in (
        *("", "a\t", "a\0", "A\u202e1", "A\u200b", "A,1", "A#1", "e\u0301", "x" * 33, "é" * 17),
        *("½", "a\n", " ", " A", "A ", "A  1", "가 ", "가  1"),
        # Letters that show nothing.
        *("A\u115f1", "A\u11601", "A\u31641", "\uffa0"),
    ):
        with refused("INVALID_FIELD", field="labels[1]"):
            await shop.products.AddSeats(add_seats(product_id, ["B-1", label], "s2"))
        with refused("INVALID_FIELD", field="items[0].seats[1]"):
            await shop.orders.CreateOrder(order_seats("ann", {product_id: ["A-1", label]}))
    assert await seat_map(shop, product_id) == {"A-1": "FREE"}


# -- ordering ------------------------------------------------------------------------------------


async def test_an_order_has_its_seats_until_it_is_cancelled(shop: Shop) -> None:
    show = await seated(shop, labels(4))
    tea = await shop.product(5)
    request = order_seats("ann", {show: ["A-0003", "A-0001"]}, "o1")
    request.items.add(product_id=tea, quantity=2)
    made = await shop.orders.CreateOrder(request)
    items = {item.product_id: list(item.seats) for item in made.order.items}
    assert items == {show: ["A-0001", "A-0003"], tea: []}
    states = {"A-0000": "FREE", "A-0001": "RESERVED", "A-0002": "FREE", "A-0003": "RESERVED"}
    assert await seat_map(shop, show) == states
    assert (await shop.stock(show), await shop.stock(tea)) == ((2, 2, 0), (3, 2, 0))
    request.items[0].seats[:] = ["A-0001", "A-0003"]
    again = await shop.orders.CreateOrder(request)
    assert (again.replayed, again.order) == (True, made.order)
    request.items[0].seats[:] = ["A-0001", "A-0002"]
    with refused("REQUEST_ID_REUSED"):
        await shop.orders.CreateOrder(request)
    cancelled = (await shop.orders.CancelOrder(cancel(made.order, "c1"))).order
    assert list(cancelled.items) == list(made.order.items), "it still names its seats"
    assert (await shop.get(made.order)).items == made.order.items
    assert set((await seat_map(shop, show)).values()) == {"FREE"}
    assert await shop.stock(show) == (4, 0, 0)
    await shop.orders.CreateOrder(order_seats("bob", {show: labels(4)}))


@pytest.mark.parametrize("early", [True, False], ids=["before-the-locks", "in-the-transaction"])
async def test_every_taken_seat_is_named_and_none_is_reserved(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, *, early: bool
) -> None:
    if not early:  # the read without locks came before the winner's commit
        monkeypatch.setattr(seat_store, "find_taken", AsyncMock(return_value=set()))
    show, tea = await seated(shop, labels(5)), await shop.product(3)
    await shop.orders.CreateOrder(order_seats("ann", {show: ["A-0001", "A-0003"]}))
    request = create_order("bob", {tea: 1}, "o1")
    request.items.add(product_id=show, quantity=4, seats=labels(4))
    with refused("SEAT_TAKEN") as ended:
        await shop.orders.CreateOrder(request)
    assert [one.subject for one in ended.refusal.quota] == ["items[1]:A-0001", "items[1]:A-0003"]
    assert ended.refusal.metadata == {"product_id": show}
    assert (await shop.stock(show), await shop.stock(tea)) == ((3, 2, 0), (3, 0, 0))


async def test_a_slow_read_before_the_locks_delays_no_order_for_long(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> set[SeatKey]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(seat_store, "find_taken", never)
    show = await seated(shop, labels(1))
    await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))
    with refused("SEAT_TAKEN"):
        await shop.orders.CreateOrder(order_seats("bob", {show: labels(1)}))


async def test_the_largest_refusal_reaches_a_client_with_default_limits(shop: Shop) -> None:
    shows = [await seated(shop, LONGEST[:1]) for _ in range(100)]
    lines = dict.fromkeys(shows, LONGEST[:1])
    await shop.orders.CreateOrder(order_seats("ann", lines))
    for number in range(30):  # a client drops trailers that are too large now and then
        with refused("SEAT_TAKEN") as ended:
            await shop.orders.CreateOrder(order_seats("u" * 60 + str(number), lines))
        subjects = [one.subject for one in ended.refusal.quota]
        assert subjects == [f"items[{line}]:{LONGEST[0]}" for line in range(100)]


async def test_an_order_that_does_not_fit_its_products_is_refused(shop: Shop) -> None:
    show, other, tea = (
        await seated(shop, labels(3)),
        await seated(shop, ["B"]),
        await shop.product(9),
    )
    for reason, field, product_id, quantity, seats in [
        ("SEAT_NOT_FOUND", "items[0].seats[1]", show, 2, ["A-0000", "B"]),
        ("PRODUCT_SEATED", "items[0].seats", show, 1, []),
        ("PRODUCT_NOT_SEATED", "items[0].seats", tea, 1, ["A-0000"]),
        ("INVALID_FIELD", "items[0].seats[1]", show, 2, ["A-0000"] * 2),
        ("INVALID_FIELD", "items[0].seats", show, 3, labels(2)),
        ("INVALID_FIELD", "items[0].seats", show, 101, labels(101)),
    ]:
        line = pb.OrderLine(product_id=product_id, quantity=quantity, seats=seats)
        with refused(reason, field=field):
            await shop.orders.CreateOrder(
                pb.CreateOrderRequest(user_id="ann", items=[line], request_id="o1")
            )
    with refused("INVALID_FIELD", field="items"):
        lines = {show: labels(51), other: labels(50, "B")}
        await shop.orders.CreateOrder(order_seats("ann", lines))
    assert [await shop.stock(one) for one in (show, other, tea)] == [
        (3, 0, 0),
        (1, 0, 0),
        (9, 0, 0),
    ]


async def test_an_order_may_have_a_hundred_seats_of_the_longest_labels(shop: Shop) -> None:
    show = await seated(shop, LONGEST)
    made = (await shop.orders.CreateOrder(order_seats("ann", {show: LONGEST[:100]}))).order
    assert list((await shop.get(made)).items[0].seats) == LONGEST[:100]
    assert await shop.stock(show) == (900, 100, 0)


async def test_a_request_that_took_its_seats_is_replayed_not_refused(shop: Shop) -> None:
    show = await seated(shop, labels(1))
    request = order_seats("ann", {show: labels(1)}, "o1")
    made = await shop.orders.CreateOrder(request)
    assert (await shop.orders.CreateOrder(request)).order == made.order
    request.request_id = "o2"
    with refused("SEAT_TAKEN"):
        await shop.orders.CreateOrder(request)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_paid_order_has_its_seats_until_its_cancellation_ends(stack: Stack) -> None:
    shop = stack.shop
    show, user = await seated(shop, labels(3)), await stack.user(10_000)
    made = (await shop.orders.CreateOrder(order_seats(user, {show: labels(2)}))).order
    with refused("PAYMENT_DECLINED"):
        await stack.pay(pay(made, balance=50, payment_key=fresh("decline_")))
    assert set((await seat_map(shop, show)).values()) == {"FREE", "RESERVED"}
    paid = (await stack.pay(pay(made))).order
    assert list(paid.items[0].seats) == labels(2)
    assert await seat_map(shop, show) == {"A-0000": "SOLD", "A-0001": "SOLD", "A-0002": "FREE"}
    assert await shop.stock(show) == (1, 0, 2)
    with refused("SEAT_TAKEN"):
        await shop.orders.CreateOrder(order_seats("bob", {show: labels(1)}))
    await stack.cancel(cancel(made, fresh()))
    assert set((await seat_map(shop, show)).values()) == {"FREE"}
    assert await shop.stock(show) == (3, 0, 0)


async def test_an_order_without_seats_costs_no_further_statement(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []
    execute = Connection.execute

    async def recorded(self: Connection, statement: sa.Executable, *parameters: Parameters) -> Rows:
        executed.append(compiled(statement).sql)
        return await execute(self, statement, *parameters)

    tea, show = await shop.product(9), await seated(shop, labels(1))
    monkeypatch.setattr(Connection, "execute", recorded)
    about_seats = re.compile(r"\b(FROM|JOIN|INTO|UPDATE) (order_)?seats\b")
    made = await shop.order("ann", {tea: 1})
    await shop.get(made)
    await shop.orders.CancelOrder(cancel(made, "c1"))
    assert not any(map(about_seats.search, executed))
    await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))
    assert sum(map(bool, map(about_seats.search, executed))) == 3, "the control"


# -- lists ---------------------------------------------------------------------------------------


async def test_seats_are_listed_in_pages_by_label_and_by_state(shop: Shop) -> None:
    show = await seated(shop, labels(1_000))
    await shop.orders.CreateOrder(order_seats("ann", {show: labels(100)}))
    listed = await seat_map(shop, show)
    assert list(listed) == labels(1_000)
    assert Counter(listed.values()) == {"FREE": 900, "RESERVED": 100}
    request = pb.ListSeatsRequest(product_id=show, state=pb.Seat.STATE_RESERVED, page_size=60)
    first = await shop.seats.ListSeats(request)
    request.page_token = first.next_page_token
    second = await shop.seats.ListSeats(request)
    assert [seat.label for seat in (*first.seats, *second.seats)] == labels(100)
    assert not second.next_page_token
    request.state = pb.Seat.STATE_FREE
    with refused("INVALID_PAGE_TOKEN"):
        await shop.seats.ListSeats(request)


async def test_the_free_seats_of_an_expired_order(shop: Shop, sql: Callable[[str], str]) -> None:
    show = await seated(shop, labels(2))
    made = (await shop.orders.CreateOrder(order_seats("ann", {show: labels(2)}))).order
    sql("UPDATE orders SET expire_time = create_time + interval '1 microsecond'")
    async for seen in shop.orders.WatchOrder(
        pb.WatchOrderRequest(order_id=made.order_id, user_id="ann")
    ):
        last = seen.order
    assert last.state == pb.Order.STATE_EXPIRED
    assert set((await seat_map(shop, show)).values()) == {"FREE"}
    assert await shop.stock(show) == (2, 0, 0)
