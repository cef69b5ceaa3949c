"""Servers that answer the load scripts as Tally does, or with an error that must be found."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import (  # type: ignore[import-untyped]  # ships stubs without py.typed
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_status import rpc_status

from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2

CONTRACTS = (balance_pb2, coupon_pb2, order_pb2, payment_pb2)

RIVALS = 4
"""Confirmations of a key besides the one that pays."""


class Payments:
    """Confirms a key once, or, if ``careless``, at every call.

    A payment is in progress until all rivals have called; if ``serial``, it ends at once.
    """

    def __init__(self, *, careless: bool = False, serial: bool = False) -> None:
        self._careless = careless
        self._serial = serial
        self._rivals = Counter[str]()
        self._met = defaultdict[str, asyncio.Event](asyncio.Event)
        self._paid: dict[str, str] = {}
        self._seen: set[str] = set()

    async def confirm_payment(self, request: Any, context: Any) -> Any:
        first = self._paid.setdefault(request.payment_key, request.request_id)
        if first != request.request_id and not self._careless:
            await self._refuse_rival(request.payment_key, context)
        replayed = request.request_id in self._seen
        if not (replayed or self._careless or self._serial):
            await self._met[request.payment_key].wait()
        self._seen.add(request.request_id)
        payment = payment_pb2.Payment(
            payment_id=f"of-{request.request_id}", state=payment_pb2.Payment.STATE_CONFIRMED
        )
        return payment_pb2.ConfirmPaymentResponse(payment=payment, replayed=replayed)

    async def _refuse_rival(self, key: str, context: Any) -> None:
        if self._serial:
            await refuse(context, code_pb2.ALREADY_EXISTS, "PAYMENT_KEY_USED")
        self._rivals[key] += 1
        if self._rivals[key] == RIVALS:
            self._met[key].set()
        await refuse(context, code_pb2.ABORTED, "PAYMENT_IN_PROGRESS")


class Sale:
    """Has coupons and products for everybody, whatever the quantity.

    The first ``put_back`` attempts to pay are refused as an attempt that was compensated, and the
    first ``stopping`` charges as by a replica that is stopping.
    """

    def __init__(self, *, put_back: int = 0, stopping: int = 0) -> None:
        self._stopping = stopping
        self.attempts: list[order_pb2.PayOrderRequest] = []
        self._put_back = put_back
        self._campaign = coupon_pb2.Campaign(campaign_id="campaign")
        self._product = order_pb2.Product(product_id="product")
        self._holders = Counter[str]()

    async def charge_balance(self, _request: Any, context: Any) -> Any:
        if self._stopping:
            self._stopping -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
        return balance_pb2.ChargeBalanceResponse()

    async def create_campaign(self, request: Any, _context: Any) -> Any:
        self._campaign.quantity = request.quantity
        self._campaign.fixed_discount.CopyFrom(request.fixed_discount)
        return coupon_pb2.CreateCampaignResponse(campaign=self._campaign)

    async def get_campaign(self, _request: Any, _context: Any) -> Any:
        return coupon_pb2.GetCampaignResponse(campaign=self._campaign)

    async def issue_coupon(self, request: Any, context: Any) -> Any:
        self._holders[request.user_id] += 1
        if self._holders[request.user_id] > 1:
            await refuse(context, code_pb2.ALREADY_EXISTS, "COUPON_ALREADY_ISSUED")
        self._campaign.issued += 1
        coupon = coupon_pb2.Coupon(coupon_id=f"of-{request.user_id}")
        return coupon_pb2.IssueCouponResponse(coupon=coupon)

    async def create_product(self, request: Any, _context: Any) -> Any:
        self._product.stock = request.stock
        self._product.price.CopyFrom(request.price)
        return order_pb2.CreateProductResponse(product=self._product)

    async def get_product(self, _request: Any, _context: Any) -> Any:
        return order_pb2.GetProductResponse(product=self._product)

    async def create_order(self, request: Any, _context: Any) -> Any:
        self._product.sold += 1
        self._product.stock -= 1
        order = order_pb2.Order(order_id=f"of-{request.user_id}")
        return order_pb2.CreateOrderResponse(order=order)

    async def pay_order(self, request: Any, context: Any) -> Any:
        self.attempts.append(request)
        if len(self.attempts) <= self._put_back:
            await refuse(context, code_pb2.UNAVAILABLE, "GATEWAY_UNAVAILABLE")
        order = order_pb2.Order(order_id=request.order_id, state=order_pb2.Order.STATE_PAID)
        order.paid_by_balance.CopyFrom(request.balance_amount)
        order.paid_by_gateway.CopyFrom(self._product.price)
        order.paid_by_gateway.amount_minor -= request.balance_amount.amount_minor
        if request.coupon_id:
            order.paid_by_gateway.amount_minor -= self._campaign.fixed_discount.amount_minor
        return order_pb2.PayOrderResponse(order=order)


async def refuse(context: Any, code: int, reason: str, **metadata: str) -> None:
    """Refuse the call as Tally does: the ErrorInfo of the status has the reason."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="tally", metadata=metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code, message=reason, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))


class Named(grpc.aio.ServerInterceptor):
    """Adds a replica's name to the trailing metadata of every call that succeeds."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def named(request: Any, context: Any) -> Any:
            context.set_trailing_metadata((("tally-replica", self._name),))
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            named, handler.request_deserializer, handler.response_serializer
        )


@asynccontextmanager
async def serving(*stand_ins: object, replicas: int = 1) -> AsyncIterator[list[str]]:
    """The addresses of servers named payment-0, payment-1 … that run these stand-ins."""
    addresses = []
    async with AsyncExitStack() as exits:
        for number in range(replicas):
            server = grpc.aio.server(
                interceptors=[Named(f"payment-{number}")], options=[("grpc.so_reuseport", 0)]
            )
            server.add_generic_rpc_handlers(tuple(_handlers(stand_ins)))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            exits.push_async_callback(server.stop, None)
            addresses.append(f"127.0.0.1:{port}")
        yield addresses


def _handlers(stand_ins: tuple[object, ...]) -> list[grpc.GenericRpcHandler]:
    """A handler for every method of the contracts that a stand-in implements."""
    handlers = []
    for contract in CONTRACTS:
        for service in contract.DESCRIPTOR.services_by_name.values():
            found = {
                method.name: _handler(getattr(stand_in, name), method)
                for method in service.methods
                for stand_in in stand_ins
                if hasattr(stand_in, name := re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
            }
            handlers.append(grpc.method_handlers_generic_handler(service.full_name, found))
    return handlers


def _handler(function: Any, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    return grpc.unary_unary_rpc_method_handler(
        function, request.FromString, response.SerializeToString
    )
