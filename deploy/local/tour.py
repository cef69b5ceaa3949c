"""grpcurl commands for a running stack, ready to paste.

Users, request_ids and payment keys are not those of the README's tour: whoever has pasted these can
follow it on the same stack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deploy.local.identities import OPERATOR, TILL, variable_of
from deploy.local.plan import PROJECT

USER: Final = "lin"


def _won(amount: int) -> dict[str, str]:
    # Protobuf writes an int64 as a string in JSON.
    return {"currency_code": "KRW", "amount_minor": str(amount)}


ADA: Final = "ada"
# What it shows, whose token it needs, method, request. Words in capitals stand for ids in earlier
# answers.
CALLS: Final[Sequence[tuple[str, str, str, Mapping[str, Any]]]] = (
    (
        "charge a balance",
        TILL,
        "tally.balance.v1.BalanceService/ChargeBalance",
        {"user_id": USER, "amount": _won(1000), "request_id": "first-charge-1"},
    ),
    (
        "deduct from it (repeat it: the first answer is returned, and no more is deducted)",
        OPERATOR,
        "tally.balance.v1.BalanceService/DeductBalance",
        {"user_id": USER, "amount": _won(300), "request_id": "first-deduct-1"},
    ),
    (
        "see what is left",
        ADA,
        "tally.balance.v1.BalanceService/GetBalance",
        {"user_id": USER, "currency_code": "KRW"},
    ),
    (
        "open a campaign of 3 coupons of 200 won",
        OPERATOR,
        "tally.coupon.v1.CouponService/CreateCampaign",
        {
            "name": "Opening",
            "fixed_discount": _won(200),
            "quantity": "3",
            "start_time": "2024-01-01T00:00:00Z",
            "end_time": "2100-01-01T00:00:00Z",
            "coupon_lifetime": "604800s",
            "request_id": "first-campaign-1",
        },
    ),
    (
        "take a coupon",
        ADA,
        "tally.coupon.v1.CouponService/IssueCoupon",
        {"campaign_id": "CAMPAIGN_ID", "user_id": USER, "request_id": "first-issue-1"},
    ),
    (
        "put a product on sale",
        OPERATOR,
        "tally.order.v1.ProductService/CreateProduct",
        {"name": "Mug", "price": _won(700), "stock": "10", "request_id": "first-product-1"},
    ),
    (
        "order one",
        ADA,
        "tally.order.v1.OrderService/CreateOrder",
        {
            "user_id": USER,
            "items": [{"product_id": "PRODUCT_ID", "quantity": "1"}],
            "request_id": "first-order-1",
        },
    ),
    (
        "pay 500 by balance and the rest through the gateway",
        ADA,
        "tally.order.v1.OrderService/PayOrder",
        {
            "order_id": "ORDER_ID",
            "user_id": USER,
            "balance_amount": _won(500),
            "payment_key": "first-card-1",
            "request_id": "first-pay-1",
        },
    ),
    (
        "cancel it: balance, payment and stock are restored",
        ADA,
        "tally.order.v1.OrderService/CancelOrder",
        {
            "order_id": "ORDER_ID",
            "user_id": USER,
            "reason": "changed my mind",
            "request_id": "first-cancel-1",
        },
    ),
)


def grpcurl_lines(services: Mapping[str, Sequence[str]], *, auth: bool = False) -> list[str]:
    """The calls of the services at these addresses, each after a comment that describes it.

    ``auth``: with the tokens that ``Identities.write_tokens`` wrote.
    """
    lines = []
    for purpose, caller, method, request in CALLS:
        service = method.split(".")[1]
        if service in services:
            token = f'-H "authorization: Bearer ${variable_of(caller)}" ' if auth else ""
            lines.append(f"# {purpose}")
            lines.append(
                f"{PROJECT}/.venv/bin/grpcurl -plaintext {token}-d '{json.dumps(request)}' "
                f"{services[service][0]} {method}"
            )
    return lines
