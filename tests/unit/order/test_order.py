"""Orders and stock: legal transitions only, and always stocked = free + reserved + sold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from common.errors import Refusal
from common.ids import new_id
from common.money import Money
from order_service.errors import (
    OrderNotCancellable,
    OrderNotPayable,
    PaymentInProgress,
)
from order_service.model.order import (
    TRANSITIONS,
    CreateOrder,
    IllegalTransition,
    Line,
    Order,
    OrderState,
)
from order_service.model.product import CreateProduct, Product, StockMove
from order_service.use_cases.order_batch import OrderBatch

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXPIRY = timedelta(minutes=15)
LATER = NOW + EXPIRY
PENDING, PAYING, PAID, CANCELLING, CANCELLED, EXPIRED = OrderState


def product(stock: int = 10, *, price: int = 100, currency: str = "KRW") -> Product:
    return Product.create(CreateProduct("Tea", Money(currency, price), stock, "c1"), new_id(), NOW)


def order(*products: Product, quantity: int = 2) -> Order:
    products = products or (product(),)
    command = CreateOrder("ann", tuple(Line(p.product_id, quantity) for p in products), "o1")
    return Order.create(command, new_id(), products, now=NOW, expiry=EXPIRY)


METHODS: dict[str, Callable[[Order], Order]] = {
    "begin_payment": lambda made: made.begin_payment(NOW),
    "complete_payment": lambda made: made.complete_payment(
        NOW, paid_by_gateway_minor=made.subtotal_minor
    ),
    "return_to_pending": lambda made: made.return_to_pending("NO_MONEY", NOW),
    "return_too_late": lambda made: made.return_to_pending("NO_MONEY", LATER),
    "cancel": lambda made: made.cancel("why", NOW),
    "cancel_overdue": lambda made: made.cancel("why", LATER),
    "begin_cancel": lambda made: made.begin_cancel("why", NOW),
    "note_failure": lambda made: made.note_failure("REFUND_REFUSED", NOW),
    "complete_cancel": lambda made: made.complete_cancel("changed my mind", NOW),
    "expire": lambda made: made.expire(LATER),
}
LEGAL = {
    (PENDING, "begin_payment"): (PAYING, None),
    (PENDING, "cancel"): (CANCELLED, StockMove.RELEASE),
    (PENDING, "cancel_overdue"): (CANCELLED, StockMove.RELEASE),
    (PENDING, "expire"): (EXPIRED, StockMove.RELEASE),
    (PAYING, "complete_payment"): (PAID, StockMove.SELL),
    (PAYING, "return_to_pending"): (PENDING, None),
    (PAYING, "return_too_late"): (EXPIRED, StockMove.RELEASE),
    (PAID, "begin_cancel"): (CANCELLING, None),
    (CANCELLING, "complete_cancel"): (CANCELLED, StockMove.TAKE_BACK),
    (PAYING, "note_failure"): (PAYING, None),
    (CANCELLING, "note_failure"): (CANCELLING, None),
}
"""The state after each method, and what becomes of the order's stock."""
PATHS = {
    PENDING: [],
    PAYING: ["begin_payment"],
    PAID: ["begin_payment", "complete_payment"],
    CANCELLING: ["begin_payment", "complete_payment", "begin_cancel"],
    CANCELLED: ["cancel"],
    EXPIRED: ["expire"],
}
"""How an order gets to each state."""


def in_state(state: OrderState) -> Order:
    made = order()
    for method in PATHS[state]:
        made = METHODS[method](made)
    assert made.state is state
    return made


@pytest.mark.parametrize("state", OrderState)
@pytest.mark.parametrize("method", METHODS)
def test_only_legal_transitions_can_be_made(state: OrderState, method: str) -> None:
    before = in_state(state)
    if (state, method) in LEGAL:
        after = METHODS[method](before)
        assert after.state is LEGAL[state, method][0]
        assert after.version == before.version + 1
        assert after.update_time >= before.update_time
    else:
        with pytest.raises((Refusal, IllegalTransition)):
            METHODS[method](before)


def test_the_table_of_transitions_is_what_the_methods_do() -> None:
    assert {(state, to): move for (state, _), (to, move) in LEGAL.items()} == TRANSITIONS


def test_an_order_is_payable_until_its_time_has_passed() -> None:
    assert order().begin_payment(LATER - timedelta(microseconds=1)).state is PAYING


@pytest.mark.parametrize(
    ("state", "change", "refusal"),
    [
        (PENDING, lambda made: made.begin_payment(LATER), OrderNotPayable),
        (PAYING, METHODS["begin_payment"], PaymentInProgress),
        (PAYING, METHODS["cancel"], PaymentInProgress),
        (EXPIRED, METHODS["cancel"], OrderNotCancellable),
    ],
)
def test_a_refused_transition_has_its_own_refusal(
    state: OrderState, change: Callable[[Order], Order], refusal: type[Refusal]
) -> None:
    with pytest.raises(refusal):
        change(in_state(state))


def test_a_refused_attempt_leaves_its_reason_and_nothing_else() -> None:
    back = order().begin_payment(NOW, coupon_id="coupon").return_to_pending("NO_MONEY", NOW)
    assert (back.coupon_id, back.failure_reason, back.discount_minor) == (None, "NO_MONEY", 0)
    assert back.begin_payment(NOW).failure_reason == ""


def test_what_is_paid_is_what_is_due() -> None:
    made = order().begin_payment(NOW)
    with pytest.raises(AssertionError):
        made.complete_payment(NOW, paid_by_balance_minor=made.subtotal_minor - 1)
    paid = made.complete_payment(
        NOW, discount_minor=50, paid_by_balance_minor=100, paid_by_gateway_minor=50
    )
    assert paid.total_minor == 150


def test_update_times_do_not_go_back_with_the_clock() -> None:
    made = replace(order(), update_time=LATER)
    assert made.begin_payment(NOW).update_time == LATER
    assert replace(product(), update_time=LATER).restock(1, NOW).update_time == LATER


def test_no_more_is_reserved_than_is_free() -> None:
    with pytest.raises(AssertionError):
        product(1).move(StockMove.RESERVE, 2, NOW)


def batch_of(*rows: Order | Product) -> OrderBatch:
    orders = {row.order_id: row for row in rows if isinstance(row, Order)}
    products = {row.product_id: row for row in rows if isinstance(row, Product)}
    return OrderBatch(orders, products, {}, {}, frozenset(), frozenset(), frozenset(), NOW)


class Stock(RuleBasedStateMachine):
    """Random transitions of orders in one batch, beside a tally of where each item must be."""

    order_ids = Bundle("order_ids")

    def __init__(self) -> None:
        super().__init__()
        self.products = [product(20), product(5), product(0)]
        self.batch = batch_of(*self.products)
        self.stocked = {each.product_id: each.stocked for each in self.products}

    @rule(
        target=order_ids,
        quantities=st.lists(st.integers(1, 6), min_size=1, max_size=3),
        reverse=st.booleans(),
    )
    def create(self, quantities: list[int], reverse: bool) -> Any:
        chosen = list(zip(self.products, quantities, strict=False))
        chosen = chosen[::-1] if reverse else chosen
        lines = tuple(Line(each.product_id, quantity) for each, quantity in chosen)
        current = [self.batch.products[each.product_id] for each, _ in chosen]
        if any(each.free < line.quantity for each, line in zip(current, lines, strict=True)):
            return multiple()
        command = CreateOrder("ann", lines, "r")
        new = Order.create(command, new_id(), current, now=NOW, expiry=EXPIRY)
        self.batch.add(new)
        self.batch.orders[new.order_id] = new
        return new.order_id

    @rule(order_id=order_ids, data=st.data())
    def move(self, order_id: str, data: st.DataObject) -> None:
        before = self.batch.orders[order_id]
        legal = sorted(method for state, method in LEGAL if state is before.state)
        if legal:
            self.batch.move(METHODS[data.draw(st.sampled_from(legal))](before))

    @rule(index=st.integers(0, 2), quantity=st.integers(1, 5))
    def restock(self, index: int, quantity: int) -> None:
        product_id = self.products[index].product_id
        self.batch.products[product_id] = self.batch.products[product_id].restock(quantity, NOW)
        self.stocked[product_id] += quantity

    @invariant()
    def every_item_is_free_reserved_or_sold(self) -> None:
        reserved = dict.fromkeys(self.stocked, 0)
        sold = dict.fromkeys(self.stocked, 0)
        for each in self.batch.orders.values():
            for item in each.items:
                if each.state in {PENDING, PAYING}:
                    reserved[item.product_id] += item.quantity
                elif each.state in {PAID, CANCELLING}:
                    sold[item.product_id] += item.quantity
        for product_id, stocked in self.stocked.items():
            found = self.batch.products[product_id]
            counts = (reserved[product_id], sold[product_id])
            assert (found.stocked, found.reserved, found.sold) == (stocked, *counts)
            assert found.free == stocked - sum(counts) >= 0


TestStock = Stock.TestCase
TestStock.settings = settings(max_examples=50, stateful_step_count=30)
