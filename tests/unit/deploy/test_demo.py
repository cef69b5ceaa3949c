"""The demo's own checks: each holds on a sale that went well, and catches its kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deploy.local.demo.checks import checks
from deploy.local.demo.customers import TILL, won
from deploy.local.demo.findings import Findings, Order, Payment
from deploy.local.demo.happened import Answer, Duplicates, Happened
from deploy.local.demo.script import (
    AT_THE_TILL_MINOR,
    CHARGE_MINOR,
    DEALT_PER_USER,
    DECLINED,
    PRICES_MINOR,
    PRINT,
    USERS_MIN,
    VISITS,
    WITH_COUPON,
    WITHOUT_COUPON,
    Script,
    cart,
    script,
)
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2

BUYER = "user-0000"
SCRIPT = script(USERS_MIN, seed=1)
Damage = Callable[[Happened, Findings], object]


def a_good_sale() -> tuple[Happened, Findings]:
    """One paid order of a print with a coupon, one payment at the till, coupons for four."""
    holders = [part.name for part in SCRIPT.parts[: SCRIPT.coupons]]
    happened = Happened()
    happened.charged_minor.update({part.name: CHARGE_MINOR for part in SCRIPT.parts})
    happened.coupons = {user: f"coupon-{user}" for user in holders}
    happened.orders = {"order": BUYER}
    happened.till_keys = {BUYER: "key"}
    happened.sent_at_once("pay", [Answer("order"), Answer("order", replayed=True)], own_ids=False)
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
        name: order_pb2.Product(product_id=name, stock=SCRIPT.stock(name)) for name in PRICES_MINOR
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
        for order_id, amount_minor in (("order", 18_000), (f"{TILL}:{BUYER}", AT_THE_TILL_MINOR))
    ]
    balances = {part.name: CHARGE_MINOR for part in SCRIPT.parts} | {BUYER: CHARGE_MINOR - 10_000}
    campaign = coupon_pb2.Campaign(issued=SCRIPT.coupons)
    return happened, Findings(campaign, products, balances, [order], coupons, payments, [])


def broken(happened: Happened, found: Findings) -> list[str]:
    return [check.what for check in checks(SCRIPT, happened, found) if not check.holds]


def test_a_good_sale_passes_every_check() -> None:
    assert broken(*a_good_sale()) == []


def issue_one_more(_: Happened, found: Findings) -> None:
    found.campaign.issued += 1


def give_one_number_twice(_: Happened, found: Findings) -> None:
    found.coupons[1].issue_number = 1


def tell_somebody_else(happened: Happened, _: Findings) -> None:
    happened.coupons[SCRIPT.parts[-1].name] = happened.coupons.pop(BUYER)


def use_up_a_coupon_for_nothing(_: Happened, found: Findings) -> None:
    found.coupons[1].state = coupon_pb2.Coupon.STATE_REDEEMED


def lose_a_print(_: Happened, found: Findings) -> None:
    found.products[PRINT].stock -= 1


def sell_what_nobody_paid(_: Happened, found: Findings) -> None:
    found.products[PRINT].stock -= 1
    found.products[PRINT].sold += 1


def keep_a_reservation(_: Happened, found: Findings) -> None:
    found.products[PRINT].stock -= 1
    found.products[PRINT].reserved += 1


def lose_an_order(happened: Happened, _: Findings) -> None:
    happened.orders["lost"] = BUYER


def pay_twice_by_balance(_: Happened, found: Findings) -> None:
    found.orders[0].paid_by_balance.amount_minor *= 2


def charge_the_card_twice(_: Happened, found: Findings) -> None:
    assert isinstance(found.payments, list)
    found.payments.append(found.payments[0])


def charge_for_a_cancelled_order(_: Happened, found: Findings) -> None:
    found.orders[0].paid_by_gateway.amount_minor = 0


def pay_by_a_declined_card(happened: Happened, _: Findings) -> None:
    happened.cards[DECLINED, "PAID"] += 1


def do_both_twins(happened: Happened, _: Findings) -> None:
    happened.sent_at_once("order", [Answer("one"), Answer("other")], own_ids=False)


def meet_an_unknown_error(happened: Happened, _: Findings) -> None:
    happened.surprises["pay: INTERNAL"] += 1


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (issue_one_more, "coupons issued"),
        (give_one_number_twice, "coupons issued"),
        (tell_somebody_else, "coupons issued"),
        (use_up_a_coupon_for_nothing, "a coupon is used"),
        (lose_a_print, "no product oversold"),
        (sell_what_nobody_paid, "no product oversold"),
        (keep_a_reservation, "no product oversold"),
        (lose_an_order, "the orders are"),
        (pay_twice_by_balance, "every balance"),
        (charge_the_card_twice, "gateway payments"),
        (charge_for_a_cancelled_order, "gateway payments"),
        (pay_by_a_declined_card, "no card that was declined"),
        (do_both_twins, "one outcome"),
        (meet_an_unknown_error, "every call got an answer"),
    ],
)
def test_damage_is_caught_by_its_check(damage: Damage, names: str) -> None:
    happened, found = a_good_sale()
    damage(happened, found)
    (what,) = broken(happened, found)
    assert names in what


def test_what_is_left_in_flight_is_named() -> None:
    happened, found = a_good_sale()
    assert broken(happened, replace(found, unsettled=["saga 7"])) == ["nothing is left in flight"]


@pytest.mark.parametrize(
    ("own_ids", "answers", "right"),
    [
        (False, [Answer("a"), Answer("a", replayed=True)], True),
        # The first answer was lost with its replica: everybody hears a replay.
        (False, [Answer("a", replayed=True), Answer("a", replayed=True)], True),
        (False, [Answer("a"), Answer("a")], False),
        (False, [Answer("a"), Answer("b")], False),
        (False, [Answer("a"), Answer(reason="OUT_OF_STOCK")], False),
        (False, [Answer(reason="OUT_OF_STOCK"), Answer(reason="OUT_OF_STOCK")], True),
        (True, [Answer("a"), Answer(reason="PAYMENT_KEY_USED")], True),
        (True, [Answer("a", replayed=True), Answer(reason="PAYMENT_KEY_USED")], True),
        (True, [Answer("a"), Answer("a")], False),
        (True, [Answer(reason="PAYMENT_KEY_USED"), Answer(reason="PAYMENT_KEY_USED")], False),
        (True, [Answer(reason="GATEWAY_UNAVAILABLE"), Answer(reason="PAYMENT_KEY_USED")], True),
    ],
)
def test_duplicates_have_one_outcome(own_ids: bool, answers: list[Answer], right: bool) -> None:
    assert Duplicates("pay", own_ids, answers).right is right


@pytest.mark.parametrize("users", [USERS_MIN, 12, 120])
def test_every_kind_of_visit_is_made(users: int) -> None:
    made = script(users, seed=1)
    assert {visit for part in made.parts for visit in part.visits} == set(VISITS)
    assert any(part.hasty for part in made.parts)
    assert any(part.at_the_till for part in made.parts)
    assert made.coupons < users
    assert made.visits == sum(1 + len(part.visits) for part in made.parts)


def test_the_same_seed_gives_the_same_script() -> None:
    assert script(50, seed=3) == script(50, seed=3)
    assert script(50, seed=3) != script(50, seed=4)


def test_orders_name_their_products_in_opposite_orders() -> None:
    visit = VISITS[0]
    assert list(cart(visit, 0)) == list(reversed(list(cart(visit, 1))))
    assert len(cart(visit, 0)) == 2


def test_a_script_has_more_customers_than_prints() -> None:
    assert Script(0, SCRIPT.parts).stock(PRINT) < len(SCRIPT.parts)


def test_a_charge_covers_the_dearest_orders() -> None:
    dearest = max(
        sum(PRICES_MINOR[name] * quantity for name, quantity in cart(visit, number).items())
        for visit in (*WITH_COUPON, *WITHOUT_COUPON, *VISITS)
        for number in range(2)
    )
    assert dearest * (1 + DEALT_PER_USER) <= CHARGE_MINOR
