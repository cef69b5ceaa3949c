"""A valid request for every method, with every field set: what is broken later is all that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor

from tally.balance.v1 import balance_pb2 as balance
from tally.coupon.v1 import coupon_pb2 as coupon
from tally.order.v1 import order_pb2 as order
from tally.payment.v1 import payment_pb2 as payment
from tally.type.v1.money_pb2 import Money
from tests.integration.contract.world import USER, YEAR, Things, World, fresh
from tests.support.coupons import campaign

Build = Callable[[Things], Any]


def won(amount_minor: int) -> Money:
    return Money(currency_code="KRW", amount_minor=amount_minor)


# In each service's order; what a request uses up, none after it needs.
VALID: Final[dict[str, Build]] = {
    "BalanceService.ChargeBalance": lambda _: balance.ChargeBalanceRequest(
        user_id=USER, amount=won(100), request_id=fresh()
    ),
    "BalanceService.DeductBalance": lambda _: balance.DeductBalanceRequest(
        user_id=USER, amount=won(100), request_id=fresh(), order_id="order-1"
    ),
    "BalanceService.RefundDeduction": lambda _: balance.RefundDeductionRequest(
        user_id=USER, deduct_request_id=fresh(), request_id=fresh()
    ),
    "BalanceService.GetBalance": lambda _: balance.GetBalanceRequest(
        user_id=USER, currency_code="KRW"
    ),
    "BalanceService.ListLedgerEntries": lambda _: balance.ListLedgerEntriesRequest(
        user_id=USER, currency_code="KRW", page_size=1
    ),
    "CouponService.CreateCampaign": lambda _: campaign(
        fresh(),
        ends_in=YEAR,
        percent_discount=10,
        max_discount=won(5_000),
        min_order_amount=won(1),
    ),
    "CouponService.GetCampaign": lambda things: coupon.GetCampaignRequest(
        campaign_id=things.campaigns[0]
    ),
    "CouponService.ListCampaigns": lambda _: coupon.ListCampaignsRequest(page_size=1),
    "CouponService.IssueCoupon": lambda things: coupon.IssueCouponRequest(
        campaign_id=things.campaigns[-1], user_id=USER, request_id=fresh()
    ),
    "CouponService.GetCoupon": lambda things: coupon.GetCouponRequest(
        coupon_id=things.coupons[0], user_id=USER
    ),
    "CouponService.ListCoupons": lambda _: coupon.ListCouponsRequest(user_id=USER, page_size=1),
    "CouponService.RedeemCoupon": lambda things: coupon.RedeemCouponRequest(
        coupon_id=things.coupons[0],
        user_id=USER,
        order_id="order-1",
        order_amount=won(10_000),
        request_id=fresh(),
    ),
    "CouponService.RestoreCoupon": lambda things: coupon.RestoreCouponRequest(
        coupon_id=things.coupons[0],
        user_id=USER,
        redeem_request_id=fresh(),
        request_id=fresh(),
    ),
    "ProductService.CreateProduct": lambda _: order.CreateProductRequest(
        name="Tea", price=won(100), stock=1, request_id=fresh()
    ),
    "ProductService.RestockProduct": lambda things: order.RestockProductRequest(
        product_id=things.products[0], quantity=1, request_id=fresh()
    ),
    "ProductService.GetProduct": lambda things: order.GetProductRequest(
        product_id=things.products[0]
    ),
    "ProductService.ListProducts": lambda _: order.ListProductsRequest(page_size=1),
    "CartService.GetCart": lambda _: order.GetCartRequest(user_id=USER),
    "CartService.SetCartItem": lambda things: order.SetCartItemRequest(
        user_id=USER, product_id=things.products[0], quantity=1, expected_version=0
    ),
    "CartService.ClearCart": lambda _: order.ClearCartRequest(user_id="eve", expected_version=0),
    "OrderService.CreateOrder": lambda things: order.CreateOrderRequest(
        user_id=USER,
        items=[order.OrderLine(product_id=id_, quantity=1) for id_ in things.products[:2]],
        request_id=fresh(),
    ),
    "OrderService.PayOrder": lambda things: order.PayOrderRequest(
        order_id=things.pending_orders[0],
        user_id=USER,
        coupon_id=things.coupons[1],
        balance_amount=won(1_000),
        payment_key=fresh(),
        request_id=fresh(),
    ),
    "OrderService.CancelOrder": lambda things: order.CancelOrderRequest(
        order_id=things.pending_orders[1], user_id=USER, reason="no need", request_id=fresh()
    ),
    "OrderService.GetOrder": lambda things: order.GetOrderRequest(
        order_id=things.paid_orders[0], user_id=USER
    ),
    "OrderService.ListOrders": lambda _: order.ListOrdersRequest(
        user_id=USER, state=order.Order.STATE_PAID, page_size=1
    ),
    "OrderService.WatchOrder": lambda things: order.WatchOrderRequest(
        order_id=things.paid_orders[0], user_id=USER
    ),
    "SagaService.ListSagas": lambda _: order.ListSagasRequest(
        state=order.Saga.STATE_COMPLETED, page_size=1
    ),
    "SagaService.GetSaga": lambda things: order.GetSagaRequest(saga_id=things.sagas[0]),
    "SagaService.RetrySaga": lambda things: order.RetrySagaRequest(
        saga_id=things.sagas[0], request_id=fresh()
    ),
    "SagaService.ResolveSaga": lambda things: order.ResolveSagaRequest(
        saga_id=things.sagas[0], reason="put right", request_id=fresh()
    ),
    "PaymentService.ConfirmPayment": lambda _: payment.ConfirmPaymentRequest(
        order_id="order-1",
        user_id=USER,
        amount=won(1_000),
        payment_key=fresh(),
        request_id=fresh(),
    ),
    "PaymentService.CancelPayment": lambda _: payment.CancelPaymentRequest(
        confirm_request_id=fresh(), user_id=USER, reason="no need", request_id=fresh()
    ),
    "PaymentService.GetPayment": lambda things: payment.GetPaymentRequest(
        payment_id=things.payments[0], user_id=USER
    ),
    "PaymentService.ListPayments": lambda _: payment.ListPaymentsRequest(
        user_id=USER, order_id="order-1", page_size=1
    ),
}


def name_of(method: MethodDescriptor) -> str:
    assert method.containing_service is not None
    return f"{method.containing_service.name}.{method.name}"


def valid(method: MethodDescriptor, world: World) -> Any:
    """A request of this method that would succeed. A new method has to be given one above."""
    return VALID[name_of(method)](world.things)
