"""PaymentService over gRPC: proto → command → use case → proto. No rules, no SQL, no ``try``."""

from __future__ import annotations

from typing import Any, Final

from common.errors import CurrencyMismatch
from common.identity.origin import origin_of_call
from common.ids import new_id
from common.paging import Page
from common.rpc.convert import money_from, money_to, time_to
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
        return pb.ConfirmPaymentResponse(payment=_payment(posted.value), replayed=posted.replayed)

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
        payment = None if posted.value is None else _payment(posted.value)
        return pb.CancelPaymentResponse(payment=payment, replayed=posted.replayed)

    @refuses()
    async def GetConfirmations(
        self, request: pb.GetConfirmationsRequest, context: Any
    ) -> pb.GetConfirmationsResponse:
        request_ids = list(request.confirm_request_ids)
        found = await self._payments.get_confirmations(request_ids)
        return pb.GetConfirmationsResponse(
            confirmations=[
                pb.GetConfirmationsResponse.Confirmation(
                    confirm_request_id=request_id,
                    payment=None if payment is None else _payment(payment),
                )
                for request_id, payment in zip(request_ids, found, strict=True)
            ]
        )

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
        return pb.ResolvePaymentResponse(payment=_payment(posted.value), replayed=posted.replayed)

    @refuses(PaymentNotFound)
    async def GetPayment(
        self, request: pb.GetPaymentRequest, context: Any
    ) -> pb.GetPaymentResponse:
        payment = await self._payments.get_payment(request.payment_id, request.user_id)
        return pb.GetPaymentResponse(payment=_payment(payment))

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


def _payment(payment: Payment) -> pb.Payment:
    cancelled = payment.cancel_request_time
    return pb.Payment(
        payment_id=payment.payment_id,
        order_id=payment.order_id,
        user_id=payment.user_id,
        amount=money_to(payment.amount),
        payment_key=payment.payment_key,
        state=_STATES[payment.state],
        gateway=payment.gateway,
        gateway_transaction_id=payment.gateway_transaction_id or "",
        failure_code=payment.failure_code or "",
        create_time=time_to(payment.create_time),
        update_time=time_to(payment.update_time),
        refunded=money_to(payment.refunded),
        cancel_request_time=None if cancelled is None else time_to(cancelled),
        refund_refusal_code=payment.refund_refusal_code or "",
        refunded_outside=money_to(payment.refunded_outside),
        resolution_reason=payment.resolution_reason or "",
    )
