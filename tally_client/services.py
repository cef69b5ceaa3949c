"""The services and their methods. The .proto files document what each does and its errors."""

from __future__ import annotations

from tally.balance.v1 import balance_pb2 as balance
from tally.coupon.v1 import coupon_pb2 as coupon
from tally.order.v1 import order_pb2 as order
from tally.payment.v1 import payment_pb2 as payment
from tally_client.calls import Listing, Unary, Watch
from tally_client.connection import Connection


class BalanceService:
    """Balances of users and their ledger."""

    def __init__(self, connection: Connection) -> None:
        self.charge_balance = Unary(
            connection, balance.ChargeBalanceRequest, balance.ChargeBalanceResponse
        )
        self.deduct_balance = Unary(
            connection, balance.DeductBalanceRequest, balance.DeductBalanceResponse
        )
        self.refund_deduction = Unary(
            connection, balance.RefundDeductionRequest, balance.RefundDeductionResponse
        )
        self.batch_write = Unary(connection, balance.BatchWriteRequest, balance.BatchWriteResponse)
        self.get_balance = Unary(connection, balance.GetBalanceRequest, balance.GetBalanceResponse)
        self.get_ledger_entry = Unary(
            connection, balance.GetLedgerEntryRequest, balance.GetLedgerEntryResponse
        )
        self.list_ledger_entries = Listing(
            connection, balance.ListLedgerEntriesRequest, balance.ListLedgerEntriesResponse
        )


class CouponService:
    """Campaigns of first-come coupons."""

    def __init__(self, connection: Connection) -> None:
        self.create_campaign = Unary(
            connection, coupon.CreateCampaignRequest, coupon.CreateCampaignResponse
        )
        self.get_campaign = Unary(connection, coupon.GetCampaignRequest, coupon.GetCampaignResponse)
        self.list_campaigns = Listing(
            connection, coupon.ListCampaignsRequest, coupon.ListCampaignsResponse
        )
        self.issue_coupon = Unary(connection, coupon.IssueCouponRequest, coupon.IssueCouponResponse)
        self.batch_issue_coupons = Unary(
            connection, coupon.BatchIssueCouponsRequest, coupon.BatchIssueCouponsResponse
        )
        self.queue_coupon = Unary(connection, coupon.QueueCouponRequest, coupon.QueueCouponResponse)
        self.get_ticket = Unary(connection, coupon.GetTicketRequest, coupon.GetTicketResponse)
        self.watch_ticket = Watch(connection, coupon.WatchTicketRequest, coupon.WatchTicketResponse)
        self.get_coupon = Unary(connection, coupon.GetCouponRequest, coupon.GetCouponResponse)
        self.list_coupons = Listing(
            connection, coupon.ListCouponsRequest, coupon.ListCouponsResponse
        )
        self.redeem_coupon = Unary(
            connection, coupon.RedeemCouponRequest, coupon.RedeemCouponResponse
        )
        self.restore_coupon = Unary(
            connection, coupon.RestoreCouponRequest, coupon.RestoreCouponResponse
        )


class ProductService:
    """Products and their stock."""

    def __init__(self, connection: Connection) -> None:
        self.create_product = Unary(
            connection, order.CreateProductRequest, order.CreateProductResponse
        )
        self.restock_product = Unary(
            connection, order.RestockProductRequest, order.RestockProductResponse
        )
        self.add_seats = Unary(connection, order.AddSeatsRequest, order.AddSeatsResponse)
        self.get_product = Unary(connection, order.GetProductRequest, order.GetProductResponse)
        self.list_products = Listing(
            connection, order.ListProductsRequest, order.ListProductsResponse
        )


class SeatService:
    """The seats of products."""

    def __init__(self, connection: Connection) -> None:
        self.list_seats = Listing(connection, order.ListSeatsRequest, order.ListSeatsResponse)
        self.watch_seats = Watch(connection, order.WatchSeatsRequest, order.WatchSeatsResponse)


class CartService:
    """Carts, one to a user.

    Changes take no request_id and are not retried after a lost answer: read the cart instead.
    """

    def __init__(self, connection: Connection) -> None:
        self.get_cart = Unary(connection, order.GetCartRequest, order.GetCartResponse)
        self.set_cart_item = Unary(connection, order.SetCartItemRequest, order.SetCartItemResponse)
        self.clear_cart = Unary(connection, order.ClearCartRequest, order.ClearCartResponse)


class OrderService:
    """Orders: create, pay, cancel and watch them."""

    def __init__(self, connection: Connection) -> None:
        self.create_order = Unary(connection, order.CreateOrderRequest, order.CreateOrderResponse)
        self.pay_order = Unary(connection, order.PayOrderRequest, order.PayOrderResponse)
        self.cancel_order = Unary(connection, order.CancelOrderRequest, order.CancelOrderResponse)
        self.get_order = Unary(connection, order.GetOrderRequest, order.GetOrderResponse)
        self.list_orders = Listing(connection, order.ListOrdersRequest, order.ListOrdersResponse)
        self.watch_order = Watch(connection, order.WatchOrderRequest, order.WatchOrderResponse)


class SagaService:
    """Sagas, for operators."""

    def __init__(self, connection: Connection) -> None:
        self.list_sagas = Listing(connection, order.ListSagasRequest, order.ListSagasResponse)
        self.get_saga = Unary(connection, order.GetSagaRequest, order.GetSagaResponse)
        self.retry_saga = Unary(connection, order.RetrySagaRequest, order.RetrySagaResponse)
        self.retry_sagas = Unary(connection, order.RetrySagasRequest, order.RetrySagasResponse)
        self.resolve_saga = Unary(connection, order.ResolveSagaRequest, order.ResolveSagaResponse)


class PaymentService:
    """Payments through the gateway."""

    def __init__(self, connection: Connection) -> None:
        self.confirm_payment = Unary(
            connection, payment.ConfirmPaymentRequest, payment.ConfirmPaymentResponse
        )
        self.cancel_payment = Unary(
            connection, payment.CancelPaymentRequest, payment.CancelPaymentResponse
        )
        self.get_confirmations = Unary(
            connection, payment.GetConfirmationsRequest, payment.GetConfirmationsResponse
        )
        self.resolve_payment = Unary(
            connection, payment.ResolvePaymentRequest, payment.ResolvePaymentResponse
        )
        self.get_payment = Unary(connection, payment.GetPaymentRequest, payment.GetPaymentResponse)
        self.list_payments = Listing(
            connection, payment.ListPaymentsRequest, payment.ListPaymentsResponse
        )
