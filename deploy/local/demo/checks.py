"""What must be true after the sale, whatever went wrong in it: each a line with its figures.

The audit proves the books from inside the databases. These look from outside: what the services
say now must be what they told their customers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.local.demo.customers import TILL
from deploy.local.demo.findings import Findings, Order, Payment
from deploy.local.demo.happened import Happened
from deploy.local.demo.script import AT_THE_TILL_MINOR, NEVER_CHARGED, Script
from tally.coupon.v1 import coupon_pb2


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation; ``wrong`` names what broke it."""

    what: str
    wrong: list[str]

    @property
    def holds(self) -> bool:
        return not self.wrong


def checks(script: Script, happened: Happened, found: Findings) -> list[Check]:
    """All expectations, each checked."""
    paid = found.orders_in(Order.STATE_PAID)
    confirmed = [one for one in found.payments if one.state == Payment.STATE_CONFIRMED]
    groups = happened.duplicates
    return [
        Check("every call got an answer that belongs to a sale", list(happened.surprises)),
        Check("nothing is left in flight", list(found.unsettled)),
        Check(
            f"{found.campaign.issued} coupons issued of {script.coupons}, one for each winner",
            list(_coupons_issued(script, happened, found)),
        ),
        Check("a coupon is used if and only if it paid an order", list(_coupons_used(found))),
        Check("no product oversold; sold is what was paid", list(_stock(script, found))),
        Check("the orders are those the customers placed", _orders(happened, found)),
        Check("every balance is what was charged less what it paid", _balances(happened, found)),
        Check(
            f"{len(confirmed)} gateway payments, one for each of {len(paid)} paid orders that "
            f"needs one and each of {len(happened.till_keys)} at the till",
            list(_payments(happened, found)),
        ),
        Check(
            "no card that was declined paid",
            [
                f"{prefix}: {count} paid"
                for (prefix, outcome), count in happened.cards.items()
                if prefix in NEVER_CHARGED and outcome == "PAID"
            ],
        ),
        Check(
            f"each of {len(groups)} intents sent several times at once had one outcome",
            [
                f"{group.what}: {[answer.id or answer.reason for answer in group.answers]}"
                for group in groups
                if not group.right
            ],
        ),
    ]


def _coupons_issued(script: Script, happened: Happened, found: Findings) -> Iterator[str]:
    if found.campaign.issued != script.coupons:
        yield f"{found.campaign.issued} issued"
    numbers = sorted(coupon.issue_number for coupon in found.coupons)
    if numbers != list(range(1, script.coupons + 1)):
        yield f"issue numbers {numbers}"
    if {coupon.user_id: coupon.coupon_id for coupon in found.coupons} != happened.coupons:
        yield "the holders are not those who were told so"


def _coupons_used(found: Findings) -> Iterator[str]:
    paid = {
        order.coupon_id: order.order_id
        for order in found.orders_in(Order.STATE_PAID)
        if order.coupon_id
    }
    for coupon in found.coupons:
        used = coupon.state == coupon_pb2.Coupon.STATE_REDEEMED
        if used != (coupon.coupon_id in paid):
            yield f"coupon {coupon.coupon_id}"


def _stock(script: Script, found: Findings) -> Iterator[str]:
    sold = Counter[str]()
    for order in found.orders_in(Order.STATE_PAID):
        sold.update({item.product_id: item.quantity for item in order.items})
    for name, product in found.products.items():
        kept = product.stock + product.reserved + product.sold
        if product.stock < 0 or kept != script.stock(name):
            yield f"{name}: {kept} of {script.stock(name)}"
        if product.sold != sold[product.product_id] or (product.reserved and not found.unsettled):
            yield f"{name}: {product.sold} sold, {product.reserved} reserved"


def _orders(happened: Happened, found: Findings) -> list[str]:
    known = {order.order_id: order.user_id for order in found.orders}
    return [f"order {order_id}" for order_id, _ in known.items() ^ happened.orders.items()]


def _balances(happened: Happened, found: Findings) -> list[str]:
    expected = Counter(happened.charged_minor)
    for order in found.orders_in(Order.STATE_PAID):
        expected[order.user_id] -= order.paid_by_balance.amount_minor
    return [
        f"{user}: {amount} instead of {expected[user]}"
        for user, amount in found.balances_minor.items()
        if amount != expected[user]
    ]


def _payments(happened: Happened, found: Findings) -> Iterator[str]:
    expected: dict[str, list[int]] = defaultdict(list)
    for order in found.orders_in(Order.STATE_PAID):
        if order.paid_by_gateway.amount_minor:
            expected[order.order_id].append(order.paid_by_gateway.amount_minor)
    for user in happened.till_keys:
        expected[f"{TILL}:{user}"].append(AT_THE_TILL_MINOR)
    confirmed: dict[str, list[int]] = defaultdict(list)
    for payment in found.payments:
        if payment.state == Payment.STATE_CONFIRMED:
            confirmed[payment.order_id].append(payment.amount.amount_minor)
    for order_id in expected.keys() | confirmed.keys():
        if expected[order_id] != confirmed[order_id]:
            yield f"{order_id}: paid {confirmed[order_id]} instead of {expected[order_id]}"
