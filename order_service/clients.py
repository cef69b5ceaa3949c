"""The other services, as the saga's steps call them.

Every call can be repeated: its request_id names the saga and the step. One that takes back names
the request it is about, whether that ever arrived or not; the service cancels it for good.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from common.errors import Code, Refusal
from common.rpc.channels import open_channel
from common.rpc.client import ServiceClient
from common.rpc.convert import money_to
from common.rpc.status import is_retryable
from order_service.model.sagas import CancelAsked, Facts, PayAsked, Saga
from order_service.settings import OrderSettings
from tally.balance.v1 import balance_pb2
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.payment.v1 import payment_pb2
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub

ATTEMPT_S: Final = 2.0
"""Time limit of one attempt at a call that only meets a database."""
GATEWAY_ATTEMPT_S: Final = 12.0
"""Time limit of one attempt at a call that meets the payment gateway, which takes its time."""
ATTEMPTS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Services:
    """The peers of the order service."""

    coupon: ServiceClient[CouponServiceStub]
    balance: ServiceClient[BalanceServiceStub]
    payment: ServiceClient[PaymentServiceStub]


@asynccontextmanager
async def open_services(settings: OrderSettings) -> AsyncIterator[Services]:
    """A channel to each peer, closed at the end of the block."""
    async with (
        ServiceClient(open_channel(settings.coupon_address), CouponServiceStub) as coupon,
        ServiceClient(open_channel(settings.balance_address), BalanceServiceStub) as balance,
        ServiceClient(open_channel(settings.payment_address), PaymentServiceStub) as payment,
    ):
        yield Services(coupon, balance, payment)


@dataclass(frozen=True, slots=True)
class Ask:
    """One call that a saga makes, under its own request_id."""

    saga: Saga
    request_id: str
    takes_back: str
    """The request_id this call takes back; '' if it takes back none."""


class Outcome(enum.Enum):
    """What an error says about the step's effect."""

    REFUSED = "refused"
    """Definitely not done, and never will be under this request_id."""
    UNREACHED = "unreached"
    """Definitely not done yet."""
    UNKNOWN = "unknown"


_DEFINITE: Final = frozenset(
    {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION}
)
_UNREACHED: Final = frozenset({"GATEWAY_UNAVAILABLE", "PAYMENT_IN_PROGRESS"})


def outcome_of(refusal: Refusal) -> Outcome:
    """Sort an error. What is not plainly a refusal of the business is unknown."""
    if refusal.reason in _UNREACHED:
        return Outcome.UNREACHED
    if refusal.reason and refusal.code in _DEFINITE and not is_retryable(refusal):
        return Outcome.REFUSED
    return Outcome.UNKNOWN


class Coupons:
    """Calls of CouponService."""

    @staticmethod
    async def redeem(services: Services, ask: Ask) -> Facts:
        saga, asked = ask.saga, ask.saga.asked
        assert isinstance(asked, PayAsked)
        assert asked.coupon_id is not None
        response = await services.coupon.call(
            services.coupon.stub.RedeemCoupon,
            coupon_pb2.RedeemCouponRequest(
                coupon_id=asked.coupon_id,
                user_id=saga.user_id,
                order_id=saga.order_id,
                order_amount=money_to(saga.money(asked.subtotal_minor)),
                request_id=ask.request_id,
            ),
            limit_s=ATTEMPT_S,
            attempts_max=ATTEMPTS_MAX,
        )
        return replace(saga.facts, discount_minor=response.discount.amount_minor)

    @staticmethod
    async def restore(services: Services, ask: Ask) -> Facts:
        assert ask.saga.asked.coupon_id is not None
        await services.coupon.call(
            services.coupon.stub.RestoreCoupon,
            coupon_pb2.RestoreCouponRequest(
                coupon_id=ask.saga.asked.coupon_id,
                user_id=ask.saga.user_id,
                redeem_request_id=ask.takes_back,
                request_id=ask.request_id,
            ),
            limit_s=ATTEMPT_S,
            attempts_max=ATTEMPTS_MAX,
        )
        return ask.saga.facts


class Balances:
    """Calls of BalanceService."""

    @staticmethod
    async def deduct(services: Services, ask: Ask) -> Facts:
        saga = ask.saga
        await services.balance.call(
            services.balance.stub.DeductBalance,
            balance_pb2.DeductBalanceRequest(
                user_id=saga.user_id,
                amount=money_to(saga.money(saga.parts.balance_minor)),
                order_id=saga.order_id,
                request_id=ask.request_id,
            ),
            limit_s=ATTEMPT_S,
            attempts_max=ATTEMPTS_MAX,
        )
        return saga.facts

    @staticmethod
    async def refund(services: Services, ask: Ask) -> Facts:
        await services.balance.call(
            services.balance.stub.RefundDeduction,
            balance_pb2.RefundDeductionRequest(
                user_id=ask.saga.user_id,
                deduct_request_id=ask.takes_back,
                request_id=ask.request_id,
            ),
            limit_s=ATTEMPT_S,
            attempts_max=ATTEMPTS_MAX,
        )
        return ask.saga.facts


class Payments:
    """Calls of PaymentService."""

    @staticmethod
    async def confirm(services: Services, ask: Ask) -> Facts:
        saga, asked = ask.saga, ask.saga.asked
        assert isinstance(asked, PayAsked)
        assert asked.payment_key is not None
        response = await services.payment.call(
            services.payment.stub.ConfirmPayment,
            payment_pb2.ConfirmPaymentRequest(
                order_id=saga.order_id,
                user_id=saga.user_id,
                amount=money_to(saga.money(saga.parts.gateway_minor)),
                payment_key=asked.payment_key,
                request_id=ask.request_id,
            ),
            limit_s=GATEWAY_ATTEMPT_S,
            # An unknown outcome is asked for again by the journal's clock, which survives us.
            attempts_max=1,
        )
        return replace(saga.facts, payment_id=response.payment.payment_id)

    @staticmethod
    async def cancel(services: Services, ask: Ask) -> Facts:
        await services.payment.call(
            services.payment.stub.CancelPayment,
            payment_pb2.CancelPaymentRequest(
                confirm_request_id=ask.takes_back,
                user_id=ask.saga.user_id,
                reason=_why(ask.saga),
                request_id=ask.request_id,
            ),
            limit_s=GATEWAY_ATTEMPT_S,
            attempts_max=1,
        )
        return ask.saga.facts


def _why(saga: Saga) -> str:
    """In words for the gateway; the same at every repetition, as the request_id demands."""
    if isinstance(saga.asked, CancelAsked):
        return saga.asked.reason
    assert saga.failure is not None
    return f"the order was not paid: {saga.failure.reason}"
