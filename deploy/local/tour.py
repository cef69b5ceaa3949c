"""Ready-to-paste grpcurl lines for a running stack."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from deploy.local.plan import PROJECT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def _won(amount: int) -> dict[str, str]:
    # As protobuf writes an int64 in JSON.
    return {"currency_code": "KRW", "amount_minor": str(amount)}


# (service, what it shows, method, request); words in capitals stand for ids in earlier answers.
CALLS: Sequence[tuple[str, str, str, Mapping[str, Any]]] = (
    (
        "balance",
        "charge a balance",
        "tally.balance.v1.BalanceService/ChargeBalance",
        {"user_id": "ada", "amount": _won(1000), "request_id": "charge-1"},
    ),
    (
        "balance",
        "deduct from it (repeat it: the answer is the first one, and no more is taken)",
        "tally.balance.v1.BalanceService/DeductBalance",
        {
            "user_id": "ada",
            "amount": _won(300),
            "request_id": "deduct-1",
        },
    ),
    (
        "balance",
        "see what is left",
        "tally.balance.v1.BalanceService/GetBalance",
        {"user_id": "ada", "currency_code": "KRW"},
    ),
    (
        "coupon",
        "open a campaign of 3 coupons of 200 won",
        "tally.coupon.v1.CouponService/CreateCampaign",
        {
            "name": "Opening",
            "fixed_discount": _won(200),
            "quantity": "3",
            "start_time": "2024-01-01T00:00:00Z",
            "end_time": "2100-01-01T00:00:00Z",
            "coupon_lifetime": "604800s",
            "request_id": "campaign-1",
        },
    ),
    (
        "coupon",
        "take a coupon",
        "tally.coupon.v1.CouponService/IssueCoupon",
        {"campaign_id": "CAMPAIGN_ID", "user_id": "ada", "request_id": "issue-1"},
    ),
    (
        "order",
        "put a product on sale",
        "tally.order.v1.ProductService/CreateProduct",
        {"name": "Mug", "price": _won(700), "stock": "10", "request_id": "product-1"},
    ),
    (
        "order",
        "order one",
        "tally.order.v1.OrderService/CreateOrder",
        {
            "user_id": "ada",
            "items": [{"product_id": "PRODUCT_ID", "quantity": "1"}],
            "request_id": "order-1",
        },
    ),
    (
        "order",
        "pay 500 by balance and the rest through the gateway",
        "tally.order.v1.OrderService/PayOrder",
        {
            "order_id": "ORDER_ID",
            "user_id": "ada",
            "balance_amount": _won(500),
            "payment_key": "card-1",
            "request_id": "pay-1",
        },
    ),
    (
        "order",
        "cancel it: everything comes back",
        "tally.order.v1.OrderService/CancelOrder",
        {
            "order_id": "ORDER_ID",
            "user_id": "ada",
            "reason": "changed my mind",
            "request_id": "cancel-1",
        },
    ),
)


def grpcurl_lines(services: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the calls of the services there are, each after a line that says what it does."""
    lines = []
    for service, purpose, method, request in CALLS:
        if service in services:
            body = json.dumps(request)
            lines.append(f"# {purpose}")
            lines.append(
                f"{PROJECT}/.venv/bin/grpcurl -plaintext -d '{body}' "
                f"{services[service][0]} {method}"
            )
    return lines
