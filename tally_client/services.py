"""The services and their methods. The .proto files document what each does and its errors."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tally.balance.v1 import balance_pb2 as balance
from tally.coupon.v1 import coupon_pb2 as coupon
from tally.order.v1 import order_pb2 as order
from tally.payment.v1 import payment_pb2 as payment
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
        super().__init__(connection, balance.DESCRIPTOR.services_by_name["BalanceService"])
        self.charge_balance = self._unary(
            balance.ChargeBalanceRequest, balance.ChargeBalanceResponse
        )
        self.deduct_balance = self._unary(
            balance.DeductBalanceRequest, balance.DeductBalanceResponse
        )
        self.refund_deduction = self._unary(
            balance.RefundDeductionRequest, balance.RefundDeductionResponse
        )
        self.get_balance = self._unary(balance.GetBalanceRequest, balance.GetBalanceResponse)
        self.get_ledger_entry = self._unary(
            balance.GetLedgerEntryRequest, balance.GetLedgerEntryResponse
        )
        self.list_ledger_entries = self._listing(
            balance.ListLedgerEntriesRequest, balance.ListLedgerEntriesResponse
        )


class CouponService(_Service):
    """Campaigns of first-come coupons."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, coupon.DESCRIPTOR.services_by_name["CouponService"])
        self.create_campaign = self._unary(
            coupon.CreateCampaignRequest, coupon.CreateCampaignResponse
        )
        self.get_campaign = self._unary(coupon.GetCampaignRequest, coupon.GetCampaignResponse)
        self.list_campaigns = self._listing(
            coupon.ListCampaignsRequest, coupon.ListCampaignsResponse
        )
        self.issue_coupon = self._unary(coupon.IssueCouponRequest, coupon.IssueCouponResponse)
        self.get_coupon = self._unary(coupon.GetCouponRequest, coupon.GetCouponResponse)
        self.list_coupons = self._listing(coupon.ListCouponsRequest, coupon.ListCouponsResponse)
        self.redeem_coupon = self._unary(coupon.RedeemCouponRequest, coupon.RedeemCouponResponse)
        self.restore_coupon = self._unary(coupon.RestoreCouponRequest, coupon.RestoreCouponResponse)


class ProductService(_Service):
    """Products and their stock."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order.DESCRIPTOR.services_by_name["ProductService"])
        self.create_product = self._unary(order.CreateProductRequest, order.CreateProductResponse)
        self.restock_product = self._unary(
            order.RestockProductRequest, order.RestockProductResponse
        )
        self.get_product = self._unary(order.GetProductRequest, order.GetProductResponse)
        self.list_products = self._listing(order.ListProductsRequest, order.ListProductsResponse)


class CartService(_Service):
    """Carts, one to a user.

    Changes take no request_id and are not retried after a lost answer: read the cart instead.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order.DESCRIPTOR.services_by_name["CartService"])
        self.get_cart = self._unary(order.GetCartRequest, order.GetCartResponse)
        self.set_cart_item = self._unary(order.SetCartItemRequest, order.SetCartItemResponse)
        self.clear_cart = self._unary(order.ClearCartRequest, order.ClearCartResponse)


class OrderService(_Service):
    """Orders: create, pay, cancel and watch them."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order.DESCRIPTOR.services_by_name["OrderService"])
        self.create_order = self._unary(order.CreateOrderRequest, order.CreateOrderResponse)
        self.pay_order = self._unary(order.PayOrderRequest, order.PayOrderResponse)
        self.cancel_order = self._unary(order.CancelOrderRequest, order.CancelOrderResponse)
        self.get_order = self._unary(order.GetOrderRequest, order.GetOrderResponse)
        self.list_orders = self._listing(order.ListOrdersRequest, order.ListOrdersResponse)
        self.watch_order = self._watch(order.WatchOrderRequest, order.WatchOrderResponse)


class SagaService(_Service):
    """Sagas, for operators."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, order.DESCRIPTOR.services_by_name["SagaService"])
        self.list_sagas = self._listing(order.ListSagasRequest, order.ListSagasResponse)
        self.get_saga = self._unary(order.GetSagaRequest, order.GetSagaResponse)
        self.retry_saga = self._unary(order.RetrySagaRequest, order.RetrySagaResponse)
        self.resolve_saga = self._unary(order.ResolveSagaRequest, order.ResolveSagaResponse)


class PaymentService(_Service):
    """Payments through the gateway."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, payment.DESCRIPTOR.services_by_name["PaymentService"])
        self.confirm_payment = self._unary(
            payment.ConfirmPaymentRequest, payment.ConfirmPaymentResponse
        )
        self.cancel_payment = self._unary(
            payment.CancelPaymentRequest, payment.CancelPaymentResponse
        )
        self.get_payment = self._unary(payment.GetPaymentRequest, payment.GetPaymentResponse)
        self.list_payments = self._listing(
            payment.ListPaymentsRequest, payment.ListPaymentsResponse
        )
