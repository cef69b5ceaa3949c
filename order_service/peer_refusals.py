"""Refusals of the services that this one calls, which its methods pass on to their callers."""

from __future__ import annotations

from typing import Final

from common.errors import Code, PeerUnavailable
from common.rpc.reasons import Reason

OF_STEPS: Final = (
    Reason(Code.NOT_FOUND, "COUPON_NOT_FOUND"),
    Reason(Code.FAILED_PRECONDITION, "COUPON_NOT_USABLE"),
    Reason(Code.FAILED_PRECONDITION, "COUPON_EXPIRED"),
    Reason(Code.FAILED_PRECONDITION, "ORDER_AMOUNT_TOO_SMALL"),
    Reason(Code.FAILED_PRECONDITION, "COUPON_WITHOUT_EFFECT"),
    Reason(Code.NOT_FOUND, "ACCOUNT_NOT_FOUND"),
    Reason(Code.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS"),
    Reason(Code.FAILED_PRECONDITION, "PAYMENT_DECLINED"),
    Reason(Code.FAILED_PRECONDITION, "PAYMENT_CANCELLED"),
    Reason(Code.ALREADY_EXISTS, "PAYMENT_KEY_USED"),
    Reason(Code.FAILED_PRECONDITION, "PAYMENT_METHOD_NOT_SUPPORTED"),
)
"""Of the steps that pay: final, and certain to have had no effect. Of what else they are refused
with, PayOrder makes refusals of its own."""
NO_ANSWER: Final = (
    PeerUnavailable,
    Reason(Code.DEADLINE_EXCEEDED, PeerUnavailable.reason),
)
