"""OrderService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from common.paging import Page
from common.rpc.convert import money_from, time_to
from order_service.model.order import CancelOrder, CreateOrder, Line, Order, OrderState, PayOrder
from order_service.use_cases.order import Orders
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc
from tally.type.v1.money_pb2 import Money

_STATES: Final = {state: pb.Order.State.Value(f"STATE_{state}") for state in OrderState}
_STATES_BY_NUMBER: Final = {number: state for state, number in _STATES.items()}


class OrderServicer(order_pb2_grpc.OrderServiceServicer):
    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    async def CreateOrder(
        self, request: pb.CreateOrderRequest, context: Any
    ) -> pb.CreateOrderResponse:
        lines = tuple(
            Line(line.product_id, line.quantity, tuple(line.seats)) for line in request.items
        )
        written = await self._orders.create(CreateOrder(request.user_id, lines, request.request_id))
        return pb.CreateOrderResponse(order=_order(written.value), replayed=written.replayed)

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
        return pb.PayOrderResponse(order=_order(written.value), replayed=written.replayed)

    async def CancelOrder(
        self, request: pb.CancelOrderRequest, context: Any
    ) -> pb.CancelOrderResponse:
        written = await self._orders.cancel(
            CancelOrder(request.order_id, request.user_id, request.reason, request.request_id)
        )
        return pb.CancelOrderResponse(order=_order(written.value), replayed=written.replayed)

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.GetOrderResponse:
        order = await self._orders.get_order(request.order_id, request.user_id)
        return pb.GetOrderResponse(order=_order(order))

    async def ListOrders(
        self, request: pb.ListOrdersRequest, context: Any
    ) -> pb.ListOrdersResponse:
        state = _STATES_BY_NUMBER[request.state] if request.HasField("state") else None
        filters = ("orders", request.user_id, state.value if state else "")
        page = Page.of(request.page_size, request.page_token, filters=filters)
        found = await self._orders.list_orders(request.user_id, state, page)
        orders, next_page_token = found.messages(_order)
        return pb.ListOrdersResponse(orders=orders, next_page_token=next_page_token)

    async def WatchOrder(
        self, request: pb.WatchOrderRequest, context: Any
    ) -> AsyncGenerator[pb.WatchOrderResponse]:
        async with aclosing(self._orders.watch(request.order_id, request.user_id)) as versions:
            async for order in versions:
                yield pb.WatchOrderResponse(order=_order(order))


def _order(order: Order) -> pb.Order:
    """The order as a message."""

    def money(amount_minor: int) -> Money:
        return Money(currency_code=order.currency_code, amount_minor=amount_minor)

    return pb.Order(
        order_id=order.order_id,
        user_id=order.user_id,
        items=[
            pb.OrderItem(
                product_id=item.product_id,
                quantity=item.quantity,
                unit_price=money(item.unit_price_minor),
                amount=money(item.amount_minor),
                seats=item.seats,
            )
            for item in order.items
        ],
        subtotal=money(order.subtotal_minor),
        discount=money(order.discount_minor),
        total=money(order.total_minor),
        paid_by_balance=money(order.paid_by_balance_minor),
        paid_by_gateway=money(order.paid_by_gateway_minor),
        coupon_id=order.coupon_id or "",
        payment_id=order.payment_id or "",
        state=_STATES[order.state],
        failure_reason=order.failure_reason,
        version=order.version,
        create_time=time_to(order.create_time),
        expire_time=time_to(order.expire_time),
        update_time=time_to(order.update_time),
    )
