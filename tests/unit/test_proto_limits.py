"""The limits of the contract, accepted: requests at the edge of what their rules allow.

Values beyond the limits are refused in tests/integration/contract, field by field.
"""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.rpc.validation import check
from tally.balance.v1.balance_pb2 import DeductBalanceRequest
from tally.coupon.v1.coupon_pb2 import CreateCampaignRequest
from tally.order.v1 import order_pb2 as order
from tally.payment.v1.payment_pb2 import ConfirmPaymentRequest
from tests.support.balances import won

LARGEST = 10**15
REQUIRED: dict[type[Message], dict[str, Any]] = {
    CreateCampaignRequest: {
        "name": "Spring",
        "quantity": 1,
        "start_time": Timestamp(seconds=100),
        "end_time": Timestamp(seconds=101),
        "coupon_lifetime": Duration(seconds=1),
    },
    order.CreateProductRequest: {"name": "Tea", "stock": 0},
}


def request_of(kind: type[Message], **fields: Any) -> Message:
    """A request with these fields, and with a value for the ids and fields it requires."""
    ids = {"user_id", "request_id"}.intersection(kind.DESCRIPTOR.fields_by_name)
    return kind(**{**dict.fromkeys(ids, "x"), **REQUIRED.get(kind, {}), **fields})


def lines(*quantities: int) -> list[order.OrderLine]:
    return [order.OrderLine(product_id=f"p{i}", quantity=many) for i, many in enumerate(quantities)]


ACCEPTED: list[tuple[type[Message], dict[str, Any]]] = [
    (DeductBalanceRequest, {"amount": won(1)}),
    (DeductBalanceRequest, {"amount": won(LARGEST), "user_id": "aZ09._:@-", "order_id": "o" * 64}),
    (DeductBalanceRequest, {"amount": won(1), "request_id": "r" * 64}),
    (ConfirmPaymentRequest, {"amount": won(1), "order_id": "o", "payment_key": "k" * 200}),
    (CreateCampaignRequest, {"percent_discount": 1}),
    (CreateCampaignRequest, {"percent_discount": 1, "shares": 1}),
    (CreateCampaignRequest, {"percent_discount": 1, "shares": 64}),
    (CreateCampaignRequest, {"percent_discount": 100, "name": "봄 맞이 🌸", "quantity": 10**12}),
    (CreateCampaignRequest, {"fixed_discount": won(1), "max_discount": won(LARGEST)}),
    (
        CreateCampaignRequest,
        {"percent_discount": 1, "coupon_lifetime": Duration(seconds=86400 * 3650)},
    ),
    (order.CreateOrderRequest, {"items": lines(1)}),
    (order.CreateOrderRequest, {"items": lines(*[10**6] * 100)}),
    (order.PayOrderRequest, {"order_id": "not a UUID, so it is not found"}),
    (order.PayOrderRequest, {"order_id": "o", "balance_amount": won(0), "payment_key": "k"}),
    (order.CreateProductRequest, {"price": won(0)}),
    (order.CreateProductRequest, {"price": won(LARGEST), "stock": 10**12}),
    (order.SetCartItemRequest, {"product_id": "p", "quantity": 0, "expected_version": 0}),
    (order.ListOrdersRequest, {"page_size": 0}),
    (order.ListOrdersRequest, {"state": order.Order.STATE_PAID, "page_size": 2**31 - 1}),
    (order.GetSagaRequest, {"order_id": "o"}),
]


@pytest.mark.parametrize(
    ("kind", "fields"), ACCEPTED, ids=[kind.DESCRIPTOR.name for kind, _ in ACCEPTED]
)
def test_request_at_its_limits_is_accepted(kind: type[Message], fields: dict[str, Any]) -> None:
    check(request_of(kind, **fields))
