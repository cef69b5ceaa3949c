"""The calls of sagas to the other services.

Every call can be repeated: its request_id names the saga and the step. A compensation names the
request that it compensates, whether that ever arrived or not; the service cancels it for ever.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from common.errors import Code, Refusal
from common.identity.service_token import ServiceToken
from common.rpc.client import ServiceClient
from common.rpc.convert import money_to
from common.rpc.retry import count_from_zero
from common.rpc.status import is_retryable
from order_service.balance_client import BalanceClient
from order_service.model.saga import Saga
from order_service.model.saga_input import CancelInput, PayInput, StepResults
from order_service.settings import OrderSettings
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.payment.v1 import payment_pb2
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tally_client.rpc.channels import open_channel

ATTEMPT_S: Final = 2.0
"""Time limit of one attempt at a call that only uses a database."""
GATEWAY_ATTEMPT_S: Final = 12.0
"""Time limit of one attempt at a call that uses the payment gateway."""
ATTEMPTS_MAX: Final = 3
BEFORE_PIVOT_ATTEMPTS_MAX: Final = 8
"""With the pauses in between about 5 s. If a channel knows one replica only and that one drains, it
finds the others when its connection closes: after TALLY_DRAIN_DELAY_S, 3 s by default. A failure
before that would refuse a payment during a rolling restart."""


count_from_zero(
    *(
        request.__name__
        for request in (
            coupon_pb2.RedeemCouponRequest,
            coupon_pb2.RestoreCouponRequest,
            balance_pb2.DeductBalanceRequest,
            balance_pb2.RefundDeductionRequest,
            payment_pb2.CancelPaymentRequest,
        )
    )
)


@dataclass(frozen=True, slots=True)
class Services:
    """Clients of the services that the order service calls."""

    coupon: ServiceClient[CouponServiceStub]
    balance: BalanceClient
    payment: ServiceClient[PaymentServiceStub]


@asynccontextmanager
async def open_services(
    settings: OrderSettings, token: ServiceToken | None
) -> AsyncIterator[Services]:
    """A channel to each service, closed at the end of the block. ``token``: the replica's own."""
    open_ = partial(open_channel, certificates=settings.peer_certificates())
    async with (
        ServiceClient(open_(settings.coupon_address), CouponServiceStub, token) as coupon,
        BalanceClient(open_(settings.balance_address), token) as balance,
        ServiceClient(open_(settings.payment_address), PaymentServiceStub, token) as payment,
    ):
        yield Services(coupon, balance, payment)


@dataclass(frozen=True, slots=True)
class StepCall:
    """One call of a saga, under its own request_id."""

    saga: Saga
    request_id: str
    compensates: str
    """The request_id that this call compensates; '' if it is no compensation."""


class StepEffect(enum.Enum):
    """What an error means for the effect of a step."""

    REFUSED = "refused"
    """Certainly not done, and never under this request_id."""
    UNREACHED = "unreached"
    """Certainly not done yet."""
    UNKNOWN = "unknown"


_DEFINITE: Final = frozenset(
    {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION}
)
_UNREACHED: Final = frozenset({"GATEWAY_UNAVAILABLE", "PAYMENT_IN_PROGRESS"})
_GATEWAY_AWAY: Final = frozenset({"GATEWAY_UNAVAILABLE", "PAYMENT_OUTCOME_UNKNOWN"})
_AT_GATEWAY: Final = _GATEWAY_AWAY | {"PAYMENT_IN_PROGRESS", "REFUND_REFUSED"}
_AWAY: Final = frozenset({"", "DATABASE_UNAVAILABLE", "REPLICA_NOT_READY"})
GATEWAY: Final = "gateway"
"""What a saga waits for if the payment service replied, and the payment is not decided."""


def is_away(refusal: Refusal) -> bool:
    """Whether the service did not reply, or cannot do anything at the moment."""
    return refusal.reason in _AWAY


def is_gateway_away(refusal: Refusal) -> bool:
    """Whether the payment service replied, and the gateway behind it did not."""
    return refusal.reason in _GATEWAY_AWAY


def is_gateway_known_away(refusal: Refusal) -> bool:
    """Whether the payment service makes no call to the gateway for some seconds, as it replied."""
    return is_gateway_away(refusal) and refusal.metadata.get("circuit") == "open"


def is_overloaded(refusal: Refusal) -> bool:
    """Whether a bound of the service's replica is reached: this call did nothing there.

    But a CancelPayment may be stored, and an earlier call of the same step may have done something.
    """
    return refusal.reason == "OVERLOADED"


def waits_for(participant: str, refusal: Refusal) -> str:
    """What a step waits for that failed at ``participant``; '' for nothing in particular."""
    if refusal.reason in _AT_GATEWAY:
        return GATEWAY
    return participant if is_away(refusal) else ""


def is_refund_refused(refusal: Refusal) -> bool:
    """Whether the gateway will never give the money back: a person has to do it."""
    return refusal.reason == "REFUND_REFUSED"


def effect_of(refusal: Refusal) -> StepEffect:
    """The effect of a step that failed. What is not plainly a refusal of the rules is unknown."""
    if refusal.reason in _UNREACHED:
        return StepEffect.UNREACHED
    if refusal.reason and refusal.code in _DEFINITE and not is_retryable(refusal):
        return StepEffect.REFUSED
    return StepEffect.UNKNOWN


async def redeem_coupon(services: Services, call: StepCall) -> StepResults:
    saga, asked = call.saga, call.saga.asked
    assert isinstance(asked, PayInput)
    assert asked.coupon_id is not None
    response = await services.coupon.call(
        services.coupon.stub.RedeemCoupon,
        coupon_pb2.RedeemCouponRequest(
            coupon_id=asked.coupon_id,
            user_id=saga.user_id,
            order_id=saga.order_id,
            order_amount=money_to(saga.money(asked.subtotal_minor)),
            request_id=call.request_id,
        ),
        limit_s=ATTEMPT_S,
        attempts_max=BEFORE_PIVOT_ATTEMPTS_MAX,
    )
    return replace(saga.facts, discount_minor=response.discount.amount_minor)


async def restore_coupon(services: Services, call: StepCall) -> StepResults:
    assert call.saga.asked.coupon_id is not None
    await services.coupon.call(
        services.coupon.stub.RestoreCoupon,
        coupon_pb2.RestoreCouponRequest(
            coupon_id=call.saga.asked.coupon_id,
            user_id=call.saga.user_id,
            redeem_request_id=call.compensates,
            request_id=call.request_id,
        ),
        limit_s=ATTEMPT_S,
        attempts_max=ATTEMPTS_MAX,
    )
    return call.saga.facts


async def deduct_balance(services: Services, call: StepCall) -> StepResults:
    saga = call.saga
    await services.balance.deduct(
        balance_pb2.DeductBalanceRequest(
            user_id=saga.user_id,
            amount=money_to(saga.money(saga.parts.balance_minor)),
            order_id=saga.order_id,
            request_id=call.request_id,
        ),
        limit_s=ATTEMPT_S,
        attempts_max=BEFORE_PIVOT_ATTEMPTS_MAX,
    )
    return saga.facts


async def refund_deduction(services: Services, call: StepCall) -> StepResults:
    await services.balance.call(
        services.balance.stub.RefundDeduction,
        balance_pb2.RefundDeductionRequest(
            user_id=call.saga.user_id,
            deduct_request_id=call.compensates,
            request_id=call.request_id,
        ),
        limit_s=ATTEMPT_S,
        attempts_max=ATTEMPTS_MAX,
    )
    return call.saga.facts


async def confirm_payment(services: Services, call: StepCall) -> StepResults:
    saga, asked = call.saga, call.saga.asked
    assert isinstance(asked, PayInput)
    assert asked.payment_key is not None
    response = await services.payment.call(
        services.payment.stub.ConfirmPayment,
        payment_pb2.ConfirmPaymentRequest(
            order_id=saga.order_id,
            user_id=saga.user_id,
            amount=money_to(saga.money(saga.parts.gateway_minor)),
            payment_key=asked.payment_key,
            request_id=call.request_id,
        ),
        limit_s=GATEWAY_ATTEMPT_S,
        # The journal schedules further attempts, which survive this replica.
        attempts_max=1,
    )
    return replace(saga.facts, payment_id=response.payment.payment_id)


async def cancel_payment(services: Services, call: StepCall) -> StepResults:
    """Returns when nothing is charged any more."""
    return await _cancel_payment(services, call, record_only=False)


async def fence_payment(services: Services, call: StepCall) -> StepResults:
    """Returns when the cancellation is stored, which is certain to be carried out."""
    return await _cancel_payment(services, call, record_only=True)


async def _cancel_payment(services: Services, call: StepCall, *, record_only: bool) -> StepResults:
    await services.payment.call(
        services.payment.stub.CancelPayment,
        payment_pb2.CancelPaymentRequest(
            confirm_request_id=call.compensates,
            user_id=call.saga.user_id,
            reason=_cancel_reason(call.saga),
            request_id=call.request_id,
            record_only=record_only,
        ),
        limit_s=ATTEMPT_S if record_only else GATEWAY_ATTEMPT_S,
        attempts_max=ATTEMPTS_MAX if record_only else 1,
    )
    return call.saga.facts


async def get_payments(
    services: Services, confirm_request_ids: Sequence[str]
) -> dict[str, payment_pb2.Payment]:
    """The payments of these confirmations, at most 500, by request_id; without those of none."""
    response = await services.payment.call(
        services.payment.stub.GetConfirmations,
        payment_pb2.GetConfirmationsRequest(confirm_request_ids=confirm_request_ids),
        limit_s=ATTEMPT_S,
        attempts_max=1,
    )
    return {
        found.confirm_request_id: found.payment
        for found in response.confirmations
        if found.HasField("payment")
    }


def _cancel_reason(saga: Saga) -> str:
    """The reason for the gateway; the same in every repetition, as the request_id demands."""
    if isinstance(saga.asked, CancelInput):
        return saga.asked.reason
    assert saga.failure is not None
    return f"the order was not paid: {saga.failure.reason}"
