"""How many transactions an order costs, and what each of them writes.

Every transaction waits for a disk, and every pass through a lane costs the order's process time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import cancel, fresh, pay
from tests.support.stack import Stack
from tests.support.statements import Transaction, recorded_transactions

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRITE = re.compile(r"\b(?:INSERT INTO|UPDATE(?! OF\b| SET\b| SKIP\b)|DELETE FROM) (\w+)")

CREATE = "answers order_items orders products"
BEGIN = "orders sagas"
"""The order is PAYING or CANCELLING, and the saga's first calls have begun."""
STEP = "sagas"
"""The result of a call, and the begin of the next."""
END = "answers orders products sagas"
"""The result of the last call, the order's move, the saga's end and the stored response."""
REDEEM = "answers coupons redemptions"
DEDUCT = "accounts answers ledger_entries"


@pytest.fixture(scope="module")
def stack_options() -> dict[str, object]:
    """No heartbeat of a saga comes in between."""
    return {"saga_lease_s": 600.0}


def written(transactions: Sequence[Transaction]) -> list[str]:
    """The tables that each transaction wrote; without jobs, and those of the payment service."""
    tables = [sorted({*WRITE.findall(" ".join(each))}) for each in transactions]
    return [" ".join(each) for each in tables if each and not {*each} & {"heartbeat", "payments"}]


@pytest.mark.parametrize(
    ("uses_coupon", "balance", "uses_gateway", "expected"),
    [
        (False, None, False, [CREATE, BEGIN, DEDUCT, END]),
        (True, None, False, [CREATE, BEGIN, REDEEM, STEP, DEDUCT, END]),
        (False, None, True, [CREATE, BEGIN, STEP, END]),
        (True, 4_000, True, [CREATE, BEGIN, REDEEM, STEP, DEDUCT, STEP, END]),
    ],
    ids=["balance", "coupon and balance", "gateway", "coupon, balance and gateway"],
)
async def test_a_paid_order_costs_these_transactions(
    stack: Stack, uses_coupon: bool, balance: int | None, uses_gateway: bool, expected: list[str]
) -> None:
    ann = await stack.user(20_000)
    product = await stack.shop.product(5, price=5_000)
    coupon_id = await stack.coupon_of(ann) if uses_coupon else None
    key = fresh("key") if uses_gateway else None
    with recorded_transactions() as transactions:
        order = await stack.shop.order(ann, {product: 2})
        request = pay(order, coupon_id=coupon_id, balance=balance, payment_key=key)
        assert (await stack.pay(request)).order.state == pb.Order.STATE_PAID
    assert written(transactions) == expected


async def test_a_cancelled_order_costs_these_transactions(stack: Stack) -> None:
    ann = await stack.user(20_000)
    order = await stack.order(ann)
    await stack.pay(pay(order))
    with recorded_transactions() as transactions:
        await stack.shop.orders.CancelOrder(cancel(order, fresh("x")))
    assert written(transactions) == [f"answers {BEGIN}", DEDUCT, "orders products sagas"]
