"""Requests of BalanceService, short enough to read in a test."""

from __future__ import annotations

from tally.balance.v1 import balance_pb2 as pb
from tally.type.v1.money_pb2 import Money


def won(amount_minor: int, *, currency: str = "KRW") -> Money:
    return Money(currency_code=currency, amount_minor=amount_minor)


def charge(
    user_id: str, amount_minor: int, request_id: str, *, currency: str = "KRW"
) -> pb.ChargeBalanceRequest:
    return pb.ChargeBalanceRequest(
        user_id=user_id, amount=won(amount_minor, currency=currency), request_id=request_id
    )


def deduct(
    user_id: str,
    amount_minor: int,
    request_id: str,
    *,
    order_id: str = "",
    currency: str = "KRW",
) -> pb.DeductBalanceRequest:
    request = pb.DeductBalanceRequest(
        user_id=user_id, amount=won(amount_minor, currency=currency), request_id=request_id
    )
    if order_id:
        request.order_id = order_id
    return request


def refund(user_id: str, deduct_request_id: str, request_id: str) -> pb.RefundDeductionRequest:
    return pb.RefundDeductionRequest(
        user_id=user_id, deduct_request_id=deduct_request_id, request_id=request_id
    )
