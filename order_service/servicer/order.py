"""OrderService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeVar

from common.errors import CurrencyMismatch
from common.identity.caller import Kind, running_caller
from common.paging import Page
from common.request_key import Result
from common.rpc.convert import fill_money, fill_time, money_from
from common.rpc.reasons import refuses
from order_service.errors import (
    AmountExceedsDue,
    NotPaid,
    OpenOrdersLimit,
    OrderNotCancellable,
    OrderNotFound,
    OrderNotPayable,
    OutOfStock,
    PaymentInProgress,
    PaymentKeyRequired,
    PaymentOutcomeUnknown,
    ProductNotFound,
    SeatNotFound,
    SeatsNamed,
    SeatsNotNamed,
    SeatTaken,
)
from order_service.model.order import CancelOrder, CreateOrder, Line, Order, OrderState, PayOrder
from order_service.peer_refusals import OF_STEPS
from order_service.use_cases.order import Orders
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc

Response = TypeVar("Response", pb.CreateOrderResponse, pb.PayOrderResponse, pb.CancelOrderResponse)

_STATES: Final = {state: pb.Order.State.Value(f"STATE_{state}") for state in OrderState}
_STATES_BY_NUMBER: Final = {number: state for state, number in _STATES.items()}


class OrderServicer(order_pb2_grpc.OrderServiceServicer):
    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    @refuses(
        ProductNotFound,
        OpenOrdersLimit,
        OutOfStock,
        SeatTaken,
        SeatNotFound,
        SeatsNotNamed,
        SeatsNamed,
        CurrencyMismatch,
    )
    async def CreateOrder(
        self, request: pb.CreateOrderRequest, context: Any
    ) -> pb.CreateOrderResponse:
        lines = tuple(
            Line(line.product_id, line.quantity, tuple(line.seats)) for line in request.items
        )
        caller = running_caller()
        # A service or an operator orders for many.
        is_limited = caller is None or caller.kind is Kind.USER
        written = await self._orders.create(
            CreateOrder(request.user_id, lines, request.request_id, is_limited)
        )
        return _written(pb.CreateOrderResponse(), written)

    @refuses(
        OrderNotFound,
        OrderNotPayable,
        PaymentInProgress,
        AmountExceedsDue,
        CurrencyMismatch,
        PaymentKeyRequired,
        NotPaid,
        PaymentOutcomeUnknown,
        *OF_STEPS,
    )
    async def PayOrder(self, request: pb.PayOrderRequest, context: Any) -> pb.PayOrderResponse:
        amount = request.balance_amount if request.HasField("balance_amount") else None
        written = await self._orders.pay(
            PayOrder(
                order_id=request.order_id,
                user_id=request.user_id,
                coupon_id=request.coupon_id or None,
                balance_amount=None if amount is None else money_from(amount),
                payment_key=request.payment_key or None,
                request_id=request.request_id,
            )
        )
        return _written(pb.PayOrderResponse(), written)

    @refuses(OrderNotFound, OrderNotCancellable, PaymentInProgress)
    async def CancelOrder(
        self, request: pb.CancelOrderRequest, context: Any
    ) -> pb.CancelOrderResponse:
        written = await self._orders.cancel(
            CancelOrder(request.order_id, request.user_id, request.reason, request.request_id)
        )
        return _written(pb.CancelOrderResponse(), written)

    @refuses(OrderNotFound)
    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.GetOrderResponse:
        order = await self._orders.get_order(request.order_id, request.user_id or None)
        response = pb.GetOrderResponse()
        _fill(response.order, order)
        return response

    @refuses()
    async def ListOrders(
        self, request: pb.ListOrdersRequest, context: Any
    ) -> pb.ListOrdersResponse:
        state = _STATES_BY_NUMBER[request.state] if request.HasField("state") else None
        filters = ("orders", request.user_id, state.value if state else "")
        page = Page.of(request.page_size, request.page_token, filters=filters)
        found = await self._orders.list_orders(request.user_id, state, page)
        orders, next_page_token = found.messages(_order)
        return pb.ListOrdersResponse(orders=orders, next_page_token=next_page_token)

    @refuses(OrderNotFound)
    async def WatchOrder(
        self, request: pb.WatchOrderRequest, context: Any
    ) -> AsyncGenerator[pb.WatchOrderResponse]:
        async with aclosing(self._orders.watch(request.order_id, request.user_id)) as versions:
            async for order in versions:
                yield pb.WatchOrderResponse(order=_order(order))


def _written(response: Response, written: Result[Order]) -> Response:
    """The response to a write."""
    response.replayed = written.replayed
    _fill(response.order, written.value)
    return response


def _order(order: Order) -> pb.Order:
    message = pb.Order()
    _fill(message, order)
    return message


# Messages are filled in place: one that is built first and then copied into its parent costs three
# times as much, and an order of three lines has fifteen of them.


def _fill(message: pb.Order, order: Order) -> None:
    message.order_id = order.order_id
    message.user_id = order.user_id
    currency_code = order.currency_code
    for item in order.items:
        added = message.items.add()
        added.product_id = item.product_id
        added.quantity = item.quantity
        fill_money(added.unit_price, currency_code, item.unit_price_minor)
        fill_money(added.amount, currency_code, item.amount_minor)
        if item.seats:
            added.seats.extend(item.seats)
    fill_money(message.subtotal, currency_code, order.subtotal_minor)
    fill_money(message.discount, currency_code, order.discount_minor)
    fill_money(message.total, currency_code, order.total_minor)
    fill_money(message.paid_by_balance, currency_code, order.paid_by_balance_minor)
    fill_money(message.paid_by_gateway, currency_code, order.paid_by_gateway_minor)
    message.coupon_id = order.coupon_id or ""
    message.payment_id = order.payment_id or ""
    message.state = _STATES[order.state]
    message.failure_reason = order.failure_reason
    message.version = order.version
    fill_time(message.create_time, order.create_time)
    fill_time(message.expire_time, order.expire_time)
    fill_time(message.update_time, order.update_time)
