"""The demo's checks: each holds for a correct sale, and fails for its kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deploy.local.demo.checks import run_checks
from deploy.local.demo.customer import DIRECT, won
from deploy.local.demo.final_state import FinalState, Order, Payment
from deploy.local.demo.results import CallResult, Duplicates, SaleResults
from deploy.local.demo.scenario import (
    CHARGE_MINOR,
    DECLINED,
    DIRECT_MINOR,
    PRICES_MINOR,
    PRINT,
    USERS_MIN,
    VISITS,
    VISITS_PER_USER,
    WITH_COUPON,
    WITHOUT_COUPON,
    Scenario,
    cart,
    make_scenario,
)
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2

BUYER = "user-0000"
SCENARIO = make_scenario(USERS_MIN, seed=1)
Damage = Callable[[SaleResults, FinalState], object]


def correct_sale() -> tuple[SaleResults, FinalState]:
    """One paid order of a print with a coupon, one direct payment, coupons for four users."""
    holders = [plan.name for plan in SCENARIO.customers[: SCENARIO.coupons]]
    results = SaleResults()
    results.charged_minor.update({plan.name: CHARGE_MINOR for plan in SCENARIO.customers})
    results.coupons = {user: f"coupon-{user}" for user in holders}
    results.orders = {"order": BUYER}
    results.direct_keys = {BUYER: "key"}
    pair = [CallResult("order"), CallResult("order", replayed=True)]
    results.duplicates.append(Duplicates("pay", False, pair))
    order = order_pb2.Order(
        order_id="order",
        user_id=BUYER,
        items=[order_pb2.OrderItem(product_id=PRINT, quantity=1)],
        paid_by_balance=won(10_000),
        paid_by_gateway=won(18_000),
        coupon_id=f"coupon-{BUYER}",
        state=Order.STATE_PAID,
    )
    products = {
        name: order_pb2.Product(product_id=name, stock=SCENARIO.stock(name))
        for name in PRICES_MINOR
    }
    products[PRINT].stock -= 1
    products[PRINT].sold += 1
    coupons = [
        coupon_pb2.Coupon(
            coupon_id=f"coupon-{user}",
            user_id=user,
            issue_number=number,
            state=coupon_pb2.Coupon.STATE_REDEEMED
            if user == BUYER
            else coupon_pb2.Coupon.STATE_ISSUED,
        )
        for number, user in enumerate(holders, 1)
    ]
    payments = [
        payment_pb2.Payment(
            order_id=order_id,
            user_id=BUYER,
            amount=won(amount_minor),
            state=Payment.STATE_CONFIRMED,
        )
        for order_id, amount_minor in (("order", 18_000), (f"{DIRECT}:{BUYER}", DIRECT_MINOR))
    ]
    balances = {plan.name: CHARGE_MINOR for plan in SCENARIO.customers} | {
        BUYER: CHARGE_MINOR - 10_000
    }
    campaign = coupon_pb2.Campaign(issued=SCENARIO.coupons)
    return results, FinalState(campaign, products, balances, [order], coupons, payments, [])


def broken(results: SaleResults, state: FinalState) -> list[str]:
    return [check.what for check in run_checks(SCENARIO, results, state) if not check.holds]


def test_correct_sale_passes_every_check() -> None:
    assert broken(*correct_sale()) == []


def add(amount: int, product: order_pb2.Product, state: str) -> None:
    """Move so many items from the stock to another count."""
    product.stock -= amount
    setattr(product, state, getattr(product, state) + amount)


def give_a_coupon_to_another_user(results: SaleResults, _: FinalState) -> None:
    results.coupons[SCENARIO.customers[-1].name] = results.coupons.pop(BUYER)


def charge_the_card_twice(_: SaleResults, state: FinalState) -> None:
    assert isinstance(state.payments, list)
    state.payments.append(state.payments[0])


def add_two_effects_of_one_intent(results: SaleResults, _: FinalState) -> None:
    results.duplicates.append(Duplicates("order", False, [CallResult("one"), CallResult("two")]))


REDEEMED = coupon_pb2.Coupon.STATE_REDEEMED
DAMAGES: dict[str, tuple[str, Damage]] = {
    "one coupon too many": (
        "coupons issued",
        lambda _, state: setattr(state.campaign, "issued", state.campaign.issued + 1),
    ),
    "one issue number twice": (
        "coupons issued",
        lambda _, state: setattr(state.coupons[1], "issue_number", 1),
    ),
    "a coupon of another user": ("coupons issued", give_a_coupon_to_another_user),
    "a coupon used without an order": (
        "a coupon is used",
        lambda _, state: setattr(state.coupons[1], "state", REDEEMED),
    ),
    "a lost print": (
        "no product oversold",
        lambda _, state: setattr(state.products[PRINT], "stock", SCENARIO.stock(PRINT) - 2),
    ),
    "a print sold without payment": (
        "no product oversold",
        lambda _, state: add(1, state.products[PRINT], "sold"),
    ),
    "a reservation that stays": (
        "no product oversold",
        lambda _, state: add(1, state.products[PRINT], "reserved"),
    ),
    "a lost order": ("the orders are", lambda results, _: results.orders.update(lost=BUYER)),
    "a balance deducted too little": (
        "every balance",
        lambda _, state: setattr(state.orders[0].paid_by_balance, "amount_minor", 20_000),
    ),
    "a card charged twice": ("gateway payments", charge_the_card_twice),
    "a payment without a due amount": (
        "gateway payments",
        lambda _, state: setattr(state.orders[0].paid_by_gateway, "amount_minor", 0),
    ),
    "a declined card that paid": (
        "no card that was declined",
        lambda results, _: results.cards.update({(DECLINED, "PAID"): 1}),
    ),
    "two effects of one intent": ("one outcome", add_two_effects_of_one_intent),
    "an unexpected error": (
        "every call got an answer",
        lambda results, _: results.unexpected.update({"pay: INTERNAL": 1}),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_fails_its_check(damage: str) -> None:
    check, change = DAMAGES[damage]
    results, state = correct_sale()
    change(results, state)
    (what,) = broken(results, state)
    assert check in what


def test_unsettled_saga_fails_the_check() -> None:
    results, state = correct_sale()
    assert broken(results, replace(state, unsettled=["saga 7"])) == ["nothing is left in flight"]


@pytest.mark.parametrize(
    ("own_ids", "results", "right"),
    [
        (False, [CallResult("a"), CallResult("a", replayed=True)], True),
        # The first result was lost with its replica: the others are replays.
        (False, [CallResult("a", replayed=True), CallResult("a", replayed=True)], True),
        (False, [CallResult("a"), CallResult("a")], False),
        (False, [CallResult("a"), CallResult("b")], False),
        (False, [CallResult("a"), CallResult(reason="OUT_OF_STOCK")], False),
        (False, [CallResult(reason="OUT_OF_STOCK"), CallResult(reason="OUT_OF_STOCK")], True),
        (True, [CallResult("a"), CallResult(reason="PAYMENT_KEY_USED")], True),
        (True, [CallResult("a", replayed=True), CallResult(reason="PAYMENT_KEY_USED")], True),
        (True, [CallResult("a"), CallResult("a")], False),
        (
            True,
            [CallResult(reason="PAYMENT_KEY_USED"), CallResult(reason="PAYMENT_KEY_USED")],
            False,
        ),
        (
            True,
            [CallResult(reason="GATEWAY_UNAVAILABLE"), CallResult(reason="PAYMENT_KEY_USED")],
            True,
        ),
    ],
)
def test_duplicates_have_one_outcome(own_ids: bool, results: list[CallResult], right: bool) -> None:
    assert Duplicates("pay", own_ids, results).right is right


@pytest.mark.parametrize("users", [USERS_MIN, 12, 120])
def test_every_kind_of_visit_is_made(users: int) -> None:
    made = make_scenario(users, seed=1)
    assert {visit for plan in made.customers for visit in plan.visits} == set(VISITS)
    assert any(plan.sends_duplicates for plan in made.customers)
    assert any(plan.pays_directly for plan in made.customers)
    assert made.coupons < users
    assert made.visits == sum(1 + len(plan.visits) for plan in made.customers)


def test_same_seed_gives_the_same_scenario() -> None:
    assert make_scenario(50, seed=3) == make_scenario(50, seed=3)
    assert make_scenario(50, seed=3) != make_scenario(50, seed=4)


def test_orders_list_products_in_opposite_orders() -> None:
    visit = VISITS[0]
    assert list(cart(visit, 0)) == list(reversed(list(cart(visit, 1))))
    assert len(cart(visit, 0)) == 2


def test_there_are_more_customers_than_prints() -> None:
    assert Scenario(0, SCENARIO.customers).stock(PRINT) < len(SCENARIO.customers)


def test_charge_covers_the_most_expensive_orders() -> None:
    most_expensive = max(
        sum(PRICES_MINOR[name] * quantity for name, quantity in cart(visit, number).items())
        for visit in (*WITH_COUPON, *WITHOUT_COUPON, *VISITS)
        for number in range(2)
    )
    assert most_expensive * (1 + VISITS_PER_USER) <= CHARGE_MINOR
