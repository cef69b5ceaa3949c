"""Bulk calls of the load: each item is recorded as the single call that it stands for.

So an item and a single call with one request_id are one request, in the history as in the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf.message import Message

from common.errors import Code
from common.rpc.status import GRPC_CODES, from_status
from tally.balance.v1 import balance_pb2 as balance_pb
from tally.coupon.v1 import coupon_pb2 as coupon_pb
from tests.chaos.history import Call, Outcome, name_of, outcome_of
from tests.support.balances import batch
from tests.support.coupons import issue

_METHODS: Final = {
    balance_pb.ChargeBalanceRequest: "ChargeBalance",
    balance_pb.DeductBalanceRequest: "DeductBalance",
    balance_pb.RefundDeductionRequest: "RefundDeduction",
}
_RESPONSES: Final[dict[str, Any]] = {
    "ChargeBalance": balance_pb.ChargeBalanceResponse,
    "DeductBalance": balance_pb.DeductBalanceResponse,
    "RefundDeduction": balance_pb.RefundDeductionResponse,
}


@dataclass(frozen=True, slots=True)
class BulkCall:
    """A bulk method, its request, and the method and request of each item's single call."""

    method: Any
    request: Message
    singles: Sequence[tuple[Any, Message]]


def bulk_write(balance: Any, requests: Sequence[Message]) -> BulkCall:
    """Charges, deductions and refunds by BatchWrite."""
    singles = [(getattr(balance, _METHODS[type(request)]), request) for request in requests]
    return BulkCall(balance.BatchWrite, batch(*requests), singles)


def bulk_issue(coupon: Any, campaign_id: str, asked: Sequence[tuple[str, str]]) -> BulkCall:
    """Coupons by BatchIssueCoupons, each for a user and a request_id."""
    items = [
        coupon_pb.BatchIssueCouponsItem(user_id=user_id, request_id=request_id)
        for user_id, request_id in asked
    ]
    request = coupon_pb.BatchIssueCouponsRequest(campaign_id=campaign_id, items=items)
    singles = [(coupon.IssueCoupon, issue(campaign_id, *each)) for each in asked]
    return BulkCall(coupon.BatchIssueCoupons, request, singles)


def calls_of(bulk: BulkCall, call: Call) -> list[Call]:
    """What each item's caller knows after the call: its own outcome, or that of the call."""
    if call.outcome is not Outcome.OK:
        return [call] * len(bulk.singles)
    return [
        _call_of(name_of(method), result, call)
        for (method, _), result in zip(bulk.singles, call.response.results, strict=True)
    ]


def _call_of(method: str, result: Any, call: Call) -> Call:
    if result.WhichOneof("outcome") != "error":
        return replace(call, response=_single_response(method, result))
    refusal = from_status(result.error, Code[GRPC_CODES[result.error.code].name])
    return replace(call, outcome=outcome_of(refusal, method), response=None, refusal=refusal)


def _single_response(method: str, result: Any) -> Message:
    """The response of the single call."""
    if isinstance(result, coupon_pb.BatchIssueCouponsResult):
        return coupon_pb.IssueCouponResponse(coupon=result.coupon, replayed=result.replayed)
    posted = result.posted
    response: Message = _RESPONSES[method](
        balance=posted.balance if posted.HasField("balance") else None,
        entry=posted.entry if posted.HasField("entry") else None,
        replayed=posted.replayed,
    )
    return response
