"""A valid request of every method, with every field set but the page token."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tally.balance.v1.balance_pb2 import BatchWriteItem
from tally.coupon.v1.coupon_pb2 import BatchIssueCouponsItem
from tally.order.v1.order_pb2 import Order, OrderLine, Saga, Seat, StandingEffect
from tally.payment.v1.payment_pb2 import ResolvePaymentRequest
from tests.support.balances import charge, deduct, refund, won
from tests.support.contract import METHODS_BY_NAME, message_class

USER: Final = "ann"


@dataclass(frozen=True)
class Seed:
    """The ids of what exists, all of USER: at least two of each kind."""

    entries: list[str]
    products: list[str]
    campaigns: list[str]
    coupons: list[str]
    tickets: list[str]
    queued: str
    """A campaign whose coupons are issued only by ticket."""
    split: str
    """A campaign with shares."""
    pending_orders: list[str]
    paid_orders: list[str]
    sagas: list[str]
    payments: list[str]
    payment_keys: list[str]
    """Keys that have paid."""
    dollar_product: str
    product_of_price: dict[int, str]
    """Products with stock enough for the largest quantity."""
    show: str
    """A product with three free seats and one that is reserved."""


def fresh() -> str:
    """An id that is not used elsewhere."""
    return f"x-{uuid.uuid4()}"


def valid_request(name: str, seed: Seed, **changes: Any) -> Any:
    """A request of this method that would succeed, with some fields changed."""
    kind = message_class(METHODS_BY_NAME[name].input_type)
    defaults = {
        field: default() if callable(default) else default
        for field, default in _DEFAULTS.items()
        if field in kind.DESCRIPTOR.fields_by_name
    }
    return kind(**{**defaults, **fields_by_method(seed)[name], **changes})


def fresh_labels() -> list[str]:
    """Labels that no seat has."""
    return [f"A-{uuid.uuid4().hex[:20]}" for _ in range(2)]


def bulk_items() -> Iterator[BatchWriteItem]:
    """An item of each kind."""
    yield BatchWriteItem(charge=charge(USER, 1_000, fresh()))
    yield BatchWriteItem(deduct=deduct(USER, 1, fresh()))
    yield BatchWriteItem(refund=refund(USER, fresh(), fresh()))


_DEFAULTS: Final[dict[str, Any]] = {
    "user_id": USER,
    "request_id": fresh,
    "payment_key": fresh,
    "deduct_request_id": fresh,
    "redeem_request_id": fresh,
    "confirm_request_id": fresh,
    "currency_code": "KRW",
    "reason": "no need",
    "page_size": 1,
    "expected_version": 0,
}


def fields_by_method(seed: Seed) -> dict[str, dict[str, Any]]:
    """The other fields of each method's request. A new method needs an entry here.

    In each service's order: no request needs what an earlier one uses up.
    """
    return {
        "ChargeBalance": {"amount": won(100)},
        "DeductBalance": {"amount": won(100), "order_id": "order-1"},
        "RefundDeduction": {},
        "GetBalance": {"at_time": Timestamp(seconds=int(time.time()))},
        "GetLedgerEntry": {"entry_id": seed.entries[0]},
        "ListLedgerEntries": {},
        "CreateCampaign": {
            "name": "Spring",
            "percent_discount": 10,
            "max_discount": won(5_000),
            "min_order_amount": won(1),
            "quantity": 10,
            "start_time": Timestamp(seconds=10**9),
            "end_time": Timestamp(seconds=4 * 10**9),
            "coupon_lifetime": Duration(seconds=3_600),
            "shares": 2,
            "queue_only": False,
        },
        "BatchWrite": {"items": [*bulk_items()]},
        "BatchIssueCoupons": {
            "campaign_id": seed.campaigns[-1],
            "items": [BatchIssueCouponsItem(user_id=fresh(), request_id=fresh())] * 2,
        },
        "GetCampaign": {"campaign_id": seed.campaigns[0]},
        "ListCampaigns": {},
        "IssueCoupon": {"campaign_id": seed.campaigns[-1]},
        "QueueCoupon": {"campaign_id": seed.campaigns[-1], "user_id": fresh()},
        "GetTicket": {"ticket_id": seed.tickets[0]},
        "WatchTicket": {"ticket_id": seed.tickets[0]},
        "GetCoupon": {"coupon_id": seed.coupons[0]},
        "ListCoupons": {},
        "RedeemCoupon": {
            "coupon_id": seed.coupons[0],
            "order_id": "order-1",
            "order_amount": won(10_000),
        },
        "RestoreCoupon": {"coupon_id": seed.coupons[0]},
        "CreateProduct": {"name": "Tea", "price": won(100), "stock": 1},
        "RestockProduct": {"product_id": seed.products[0], "quantity": 1},
        "AddSeats": {"product_id": seed.show, "labels": fresh_labels()},
        "GetProduct": {"product_id": seed.products[0]},
        "ListProducts": {},
        "ListSeats": {"product_id": seed.show, "state": Seat.STATE_FREE},
        "WatchSeats": {"product_id": seed.show, "after_version": 0},
        "GetCart": {},
        "SetCartItem": {"product_id": seed.products[0], "quantity": 1},
        "ClearCart": {"user_id": "eve"},
        "CreateOrder": {"items": [OrderLine(product_id=p, quantity=1) for p in seed.products[:2]]},
        "PayOrder": {
            "order_id": seed.pending_orders[0],
            "coupon_id": seed.coupons[1],
            "balance_amount": won(1_000),
        },
        "CancelOrder": {"order_id": seed.pending_orders[1]},
        "GetOrder": {"order_id": seed.paid_orders[0]},
        "ListOrders": {"state": Order.STATE_PAID},
        "WatchOrder": {"order_id": seed.paid_orders[0]},
        "ListSagas": {"state": Saga.STATE_COMPLETED},
        "GetSaga": {"saga_id": seed.sagas[0]},
        "RetrySaga": {"saga_id": seed.sagas[0]},
        "RetrySagas": {
            "state": Saga.STATE_RUNNING,
            "kind": Saga.KIND_PAY_ORDER,
            "last_reason": "OVERLOADED",
            "age": Duration(seconds=1),
        },
        "ResolveSaga": {
            "saga_id": seed.sagas[0],
            "standing": [
                StandingEffect(step=step, reason="x")
                for step in ("redeem_coupon", "deduct_balance")
            ],
        },
        "ConfirmPayment": {"order_id": "order-1", "amount": won(1_000)},
        "CancelPayment": {"record_only": True},
        "GetConfirmations": {"confirm_request_ids": ["c-1", "c-2"]},
        "ResolvePayment": {
            "payment_id": seed.payments[2],
            "outcome": ResolvePaymentRequest.OUTCOME_REFUNDED_OUTSIDE,
            "amount": won(1),
        },
        "GetPayment": {"payment_id": seed.payments[0]},
        # No key: it has one payment, and so no second page.
        "ListPayments": {"order_id": "order-1", "payment_key": None},
    }


def copy_of(request: Message) -> Any:
    """The same request again."""
    return type(request).FromString(request.SerializeToString())
