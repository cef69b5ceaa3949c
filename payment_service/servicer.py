"""PaymentService over gRPC: proto → command → use case → proto. No rules, no SQL, no ``try``."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from common.errors import CurrencyMismatch
from common.identity.origin import origin_of_call
from common.ids import new_id
from common.paging import Page
from common.request_key import Result
from common.rpc.convert import fill_money, fill_time, money_from
from common.rpc.reasons import refuses
from payment_service.errors import (
    GatewayUnavailable,
    PaymentCancelled,
    PaymentDeclined,
    PaymentInProgress,
    PaymentKeyUsed,
    PaymentMethodNotSupported,
    PaymentNotFound,
    PaymentOutcomeDiffers,
    PaymentOutcomeUnknown,
    RefundRefused,
)
from payment_service.model.payment import Payment, PaymentState
from payment_service.model.payment_command import (
    CancelPayment,
    ConfirmPayment,
    Resolution,
    ResolvePayment,
)
from payment_service.use_cases.payment import Payments
from tally.payment.v1 import payment_pb2 as pb
from tally.payment.v1 import payment_pb2_grpc

Response = TypeVar(
    "Response", pb.ConfirmPaymentResponse, pb.CancelPaymentResponse, pb.ResolvePaymentResponse
)

_STATES: Final = {state: pb.Payment.State.Value(f"STATE_{state}") for state in PaymentState}
_RESOLUTIONS: Final = {
    pb.ResolvePaymentRequest.Outcome.Value(f"OUTCOME_{resolution}"): resolution
    for resolution in Resolution
}


class PaymentServicer(payment_pb2_grpc.PaymentServiceServicer):
    def __init__(self, payments: Payments) -> None:
        self._payments = payments

    @refuses(
        PaymentDeclined,
        PaymentCancelled,
        PaymentInProgress,
        PaymentKeyUsed,
        PaymentMethodNotSupported,
        PaymentOutcomeUnknown,
        GatewayUnavailable,
    )
    async def ConfirmPayment(
        self, request: pb.ConfirmPaymentRequest, context: Any
    ) -> pb.ConfirmPaymentResponse:
        posted = await self._payments.confirm(
            ConfirmPayment(
                request.order_id,
                request.user_id,
                money_from(request.amount),
                request.payment_key,
                request.request_id,
                holder=new_id(),
                origin=origin_of_call(),
            )
        )
        assert posted.value is not None
        return _posted(pb.ConfirmPaymentResponse(), posted)

    @refuses(PaymentInProgress, RefundRefused, PaymentOutcomeUnknown, GatewayUnavailable)
    async def CancelPayment(
        self, request: pb.CancelPaymentRequest, context: Any
    ) -> pb.CancelPaymentResponse:
        posted = await self._payments.cancel(
            CancelPayment(
                request.confirm_request_id,
                request.user_id,
                request.reason,
                request.request_id,
                holder=new_id(),
                record_only=request.record_only,
            )
        )
        return _posted(pb.CancelPaymentResponse(), posted)

    @refuses()
    async def GetConfirmations(
        self, request: pb.GetConfirmationsRequest, context: Any
    ) -> pb.GetConfirmationsResponse:
        request_ids = list(request.confirm_request_ids)
        found = await self._payments.get_confirmations(request_ids)
        response = pb.GetConfirmationsResponse()
        for request_id, payment in zip(request_ids, found, strict=True):
            confirmation = response.confirmations.add(confirm_request_id=request_id)
            if payment is not None:
                _fill(confirmation.payment, payment)
        return response

    @refuses(
        PaymentNotFound,
        PaymentOutcomeDiffers,
        PaymentInProgress,
        PaymentOutcomeUnknown,
        CurrencyMismatch,
    )
    async def ResolvePayment(
        self, request: pb.ResolvePaymentRequest, context: Any
    ) -> pb.ResolvePaymentResponse:
        posted = await self._payments.resolve(
            ResolvePayment(
                request.payment_id,
                _RESOLUTIONS[request.outcome],
                money_from(request.amount) if request.HasField("amount") else None,
                request.reason,
                request.request_id,
            )
        )
        assert posted.value is not None
        return _posted(pb.ResolvePaymentResponse(), posted)

    @refuses(PaymentNotFound)
    async def GetPayment(
        self, request: pb.GetPaymentRequest, context: Any
    ) -> pb.GetPaymentResponse:
        payment = await self._payments.get_payment(request.payment_id, request.user_id)
        response = pb.GetPaymentResponse()
        _fill(response.payment, payment)
        return response

    @refuses()
    async def ListPayments(
        self, request: pb.ListPaymentsRequest, context: Any
    ) -> pb.ListPaymentsResponse:
        user_id, order_id = request.user_id or None, request.order_id or None
        payment_key = request.payment_key or None
        # Without the key where there is none: as in the tokens of the earlier release.
        filters = [
            "payments",
            user_id or "",
            order_id or "",
            *([payment_key] if payment_key else []),
        ]
        page = Page.of(request.page_size, request.page_token, filters=filters)
        found = await self._payments.list_payments(user_id, order_id, payment_key, page)
        payments, next_page_token = found.messages(_payment)
        return pb.ListPaymentsResponse(payments=payments, next_page_token=next_page_token)


def _posted(response: Response, posted: Result[Payment | None]) -> Response:
    """The response to a write."""
    response.replayed = posted.replayed
    if posted.value is not None:
        _fill(response.payment, posted.value)
    return response


def _payment(payment: Payment) -> pb.Payment:
    message = pb.Payment()
    _fill(message, payment)
    return message


# Set in place: a message that is built first is copied into its response.


def _fill(message: pb.Payment, payment: Payment) -> None:
    currency_code = payment.amount.currency_code
    message.payment_id = payment.payment_id
    message.order_id = payment.order_id
    message.user_id = payment.user_id
    fill_money(message.amount, currency_code, payment.amount.amount_minor)
    message.payment_key = payment.payment_key
    message.state = _STATES[payment.state]
    message.gateway = payment.gateway
    message.gateway_transaction_id = payment.gateway_transaction_id or ""
    message.failure_code = payment.failure_code or ""
    fill_time(message.create_time, payment.create_time)
    fill_time(message.update_time, payment.update_time)
    fill_money(message.refunded, currency_code, payment.refunded.amount_minor)
    if payment.cancel_request_time is not None:
        fill_time(message.cancel_request_time, payment.cancel_request_time)
    message.refund_refusal_code = payment.refund_refusal_code or ""
    fill_money(message.refunded_outside, currency_code, payment.refunded_outside_minor)
    message.resolution_reason = payment.resolution_reason or ""
