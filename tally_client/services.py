"""The services and their methods. The .proto files document what each does and its errors."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally_client.calls import Listing, Unary, Watch
from tally_client.connection import Connection

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class _Service:
    def __init__(self, connection: Connection, descriptor: ServiceDescriptor) -> None:
        self._connection = connection
        self._methods = descriptor.methods_by_name

    def _method(self, request: type[Request]) -> MethodDescriptor:
        # The contract names every request after its method.
        return self._methods[request.DESCRIPTOR.name.removesuffix("Request")]

    def _unary(self, request: type[Request], response: type[Response]) -> Unary[Request, Response]:
        return Unary(self._connection, self._method(request), request, response)

    def _listing(
        self, request: type[Request], response: type[Response]
    ) -> Listing[Request, Response]:
        return Listing(self._connection, self._method(request), request, response)

    def _watch(self, request: type[Request], response: type[Response]) -> Watch[Request, Response]:
        return Watch(self._connection, self._method(request), request, response)


class BalanceService(_Service):
    """Balances of users and their ledger."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, balance_pb2.DESCRIPTOR.services_by_name["BalanceService"])
        self.charge_balance = self._unary(
            balance_pb2.ChargeBalanceRequest, balance_pb2.ChargeBalanceResponse
        )
        self.deduct_balance = self._unary(
            balance_pb2.DeductBalanceRequest, balance_pb2.DeductBalanceResponse
        )
        self.refund_deduction = self._unary(
            balance_pb2.RefundDeductionRequest, balance_pb2.RefundDeductionResponse
        )
        self.get_balance = self._unary(
            balance_pb2.GetBalanceRequest, balance_pb2.GetBalanceResponse
        )
        self.list_ledger_entries = self._listing(
            balance_pb2.ListLedgerEntriesRequest, balance_pb2.ListLedgerEntriesResponse
        )


class CouponService(_Service):
    """Campaigns of first-come coupons."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, coupon_pb2.DESCRIPTOR.services_by_name["CouponService"])
        self.create_campaign = self._unary(
            coupon_pb2.CreateCampaignRequest, coupon_pb2.CreateCampaignResponse
        )
        self.get_campaign = self._unary(
            coupon_pb2.GetCampaignRequest, coupon_pb2.GetCampaignResponse
        )
        self.list_campaigns = self._listing(
            coupon_pb2.ListCampaignsRequest, coupon_pb2.ListCampaignsResponse
        )
        self.issue_coupon = self._unary(
            coupon_pb2.IssueCouponRequest, coupon_pb2.IssueCouponResponse
        )
        self.get_coupon = self._unary(coupon_pb2.GetCouponRequest, coupon_pb2.GetCouponResponse)
        self.list_coupons = self._listing(
            coupon_pb2.ListCouponsRequest, coupon_pb2.ListCouponsResponse
        )
        self.redeem_coupon = self._unary(
            coupon_pb2.RedeemCouponRequest, coupon_pb2.RedeemCouponResponse
        )
        self.restore_coupon = self._unary(
            coupon_pb2.RestoreCouponRequest, coupon_pb2.RestoreCouponResponse
        )


class ProductService(_Service):
    """Products and their stock."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order_pb2.DESCRIPTOR.services_by_name["ProductService"])
        self.create_product = self._unary(
            order_pb2.CreateProductRequest, order_pb2.CreateProductResponse
        )
        self.restock_product = self._unary(
            order_pb2.RestockProductRequest, order_pb2.RestockProductResponse
        )
        self.get_product = self._unary(order_pb2.GetProductRequest, order_pb2.GetProductResponse)
        self.list_products = self._listing(
            order_pb2.ListProductsRequest, order_pb2.ListProductsResponse
        )


class CartService(_Service):
    """Carts, one to a user.

    Changes take no request_id and are not retried after a lost answer: read the cart instead.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order_pb2.DESCRIPTOR.services_by_name["CartService"])
        self.get_cart = self._unary(order_pb2.GetCartRequest, order_pb2.GetCartResponse)
        self.set_cart_item = self._unary(
            order_pb2.SetCartItemRequest, order_pb2.SetCartItemResponse
        )
        self.clear_cart = self._unary(order_pb2.ClearCartRequest, order_pb2.ClearCartResponse)


class OrderService(_Service):
    """Orders: create, pay, cancel and watch them."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order_pb2.DESCRIPTOR.services_by_name["OrderService"])
        self.create_order = self._unary(order_pb2.CreateOrderRequest, order_pb2.CreateOrderResponse)
        self.pay_order = self._unary(order_pb2.PayOrderRequest, order_pb2.PayOrderResponse)
        self.cancel_order = self._unary(order_pb2.CancelOrderRequest, order_pb2.CancelOrderResponse)
        self.get_order = self._unary(order_pb2.GetOrderRequest, order_pb2.GetOrderResponse)
        self.list_orders = self._listing(order_pb2.ListOrdersRequest, order_pb2.ListOrdersResponse)
        self.watch_order = self._watch(order_pb2.WatchOrderRequest, order_pb2.WatchOrderResponse)


class SagaService(_Service):
    """Sagas, for operators."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order_pb2.DESCRIPTOR.services_by_name["SagaService"])
        self.list_sagas = self._listing(order_pb2.ListSagasRequest, order_pb2.ListSagasResponse)
        self.get_saga = self._unary(order_pb2.GetSagaRequest, order_pb2.GetSagaResponse)
        self.retry_saga = self._unary(order_pb2.RetrySagaRequest, order_pb2.RetrySagaResponse)
        self.resolve_saga = self._unary(order_pb2.ResolveSagaRequest, order_pb2.ResolveSagaResponse)


class PaymentService(_Service):
    """Payments through the gateway."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, payment_pb2.DESCRIPTOR.services_by_name["PaymentService"])
        self.confirm_payment = self._unary(
            payment_pb2.ConfirmPaymentRequest, payment_pb2.ConfirmPaymentResponse
        )
        self.cancel_payment = self._unary(
            payment_pb2.CancelPaymentRequest, payment_pb2.CancelPaymentResponse
        )
        self.get_payment = self._unary(
            payment_pb2.GetPaymentRequest, payment_pb2.GetPaymentResponse
        )
        self.list_payments = self._listing(
            payment_pb2.ListPaymentsRequest, payment_pb2.ListPaymentsResponse
        )
