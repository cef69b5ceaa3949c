"""What must be true after the sale, whatever failed in it: one line with its figures each.

The audit checks the books from inside the databases. These checks work from outside: what the
services return now must agree with what they returned to the customers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.local.demo.customer import DIRECT
from deploy.local.demo.final_state import FinalState, Order, Payment
from deploy.local.demo.results import SaleResults
from deploy.local.demo.scenario import DIRECT_MINOR, NEVER_CHARGED, Scenario
from tally.coupon.v1 import coupon_pb2


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation; ``wrong`` lists what contradicts it."""

    what: str
    wrong: list[str]

    @property
    def holds(self) -> bool:
        return not self.wrong


def run_checks(scenario: Scenario, results: SaleResults, state: FinalState) -> list[Check]:
    """All expectations, each checked."""
    paid = state.orders_in(Order.STATE_PAID)
    confirmed = [one for one in state.payments if one.state == Payment.STATE_CONFIRMED]
    groups = results.duplicates
    return [
        Check("every call got an answer that is expected in a sale", list(results.unexpected)),
        Check("nothing is left in flight", list(state.unsettled)),
        Check(
            f"{state.campaign.issued} coupons issued of {scenario.coupons}, one for each winner",
            list(_coupons_issued(scenario, results, state)),
        ),
        Check("a coupon is used if and only if it paid an order", list(_coupons_used(state))),
        Check("no product oversold; sold is what was paid", list(_stock(scenario, state))),
        Check("the orders are those the customers placed", _orders(results, state)),
        Check("every balance is what was charged less what it paid", _balances(results, state)),
        Check(
            f"{len(confirmed)} gateway payments, one for each of {len(paid)} paid orders that "
            f"needs one and each of {len(results.direct_keys)} direct payments",
            list(_payments(results, state)),
        ),
        Check(
            "no card that was declined paid",
            [
                f"{prefix}: {count} paid"
                for (prefix, outcome), count in results.cards.items()
                if prefix in NEVER_CHARGED and outcome == "PAID"
            ],
        ),
        Check(
            f"each of {len(groups)} intents sent several times at once had one outcome",
            [
                f"{group.what}: {[result.id or result.reason for result in group.results]}"
                for group in groups
                if not group.right
            ],
        ),
    ]


def _coupons_issued(scenario: Scenario, results: SaleResults, state: FinalState) -> Iterator[str]:
    if state.campaign.issued != scenario.coupons:
        yield f"{state.campaign.issued} issued"
    numbers = sorted(coupon.issue_number for coupon in state.coupons)
    if numbers != list(range(1, scenario.coupons + 1)):
        yield f"issue numbers {numbers}"
    if {coupon.user_id: coupon.coupon_id for coupon in state.coupons} != results.coupons:
        yield "the owners are not the users whose calls succeeded"


def _coupons_used(state: FinalState) -> Iterator[str]:
    paid = {order.coupon_id for order in state.orders_in(Order.STATE_PAID)}
    for coupon in state.coupons:
        used = coupon.state == coupon_pb2.Coupon.STATE_REDEEMED
        if used != (coupon.coupon_id in paid):
            yield f"coupon {coupon.coupon_id}"


def _stock(scenario: Scenario, state: FinalState) -> Iterator[str]:
    sold = Counter[str]()
    for order in state.orders_in(Order.STATE_PAID):
        sold.update({item.product_id: item.quantity for item in order.items})
    for name, product in state.products.items():
        total = product.stock + product.reserved + product.sold
        if product.stock < 0 or total != scenario.stock(name):
            yield f"{name}: {total} of {scenario.stock(name)}"
        if product.sold != sold[product.product_id] or (product.reserved and not state.unsettled):
            yield f"{name}: {product.sold} sold, {product.reserved} reserved"


def _orders(results: SaleResults, state: FinalState) -> list[str]:
    found = {order.order_id: order.user_id for order in state.orders}
    return [f"order {order_id}" for order_id, _ in found.items() ^ results.orders.items()]


def _balances(results: SaleResults, state: FinalState) -> list[str]:
    expected = Counter(results.charged_minor)
    for order in state.orders_in(Order.STATE_PAID):
        expected[order.user_id] -= order.paid_by_balance.amount_minor
    return [
        f"{user}: {amount} instead of {expected[user]}"
        for user, amount in state.balances_minor.items()
        if amount != expected[user]
    ]


def _payments(results: SaleResults, state: FinalState) -> Iterator[str]:
    expected: dict[str, list[int]] = defaultdict(list)
    for order in state.orders_in(Order.STATE_PAID):
        if order.paid_by_gateway.amount_minor:
            expected[order.order_id].append(order.paid_by_gateway.amount_minor)
    for user in results.direct_keys:
        expected[f"{DIRECT}:{user}"].append(DIRECT_MINOR)
    confirmed: dict[str, list[int]] = defaultdict(list)
    for payment in state.payments:
        if payment.state == Payment.STATE_CONFIRMED:
            confirmed[payment.order_id].append(payment.amount.amount_minor)
    for order_id in expected.keys() | confirmed.keys():
        if expected[order_id] != confirmed[order_id]:
            yield f"{order_id}: paid {confirmed[order_id]} instead of {expected[order_id]}"
