"""Servers that answer the load scripts as Tally does, or with an error that must be found."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tests.support.fake_server import Received, fake_server, refusal

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

    async def confirm_payment(self, request: Any) -> Any:
        first = self._paid.setdefault(request.payment_key, request.request_id)
        if first != request.request_id and not self._careless:
            await self._refuse_rival(request.payment_key)
        replayed = request.request_id in self._seen
        if not (replayed or self._careless or self._serial):
            await self._met[request.payment_key].wait()
        self._seen.add(request.request_id)
        payment = payment_pb2.Payment(
            payment_id=f"of-{request.request_id}", state=payment_pb2.Payment.STATE_CONFIRMED
        )
        return payment_pb2.ConfirmPaymentResponse(payment=payment, replayed=replayed)

    async def _refuse_rival(self, key: str) -> None:
        if self._serial:
            raise refusal("ALREADY_EXISTS", "PAYMENT_KEY_USED", retry_after_s=None)
        self._rivals[key] += 1
        if self._rivals[key] == RIVALS:
            self._met[key].set()
        raise refusal("ABORTED", "PAYMENT_IN_PROGRESS", retry_after_s=None)


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

    async def charge_balance(self, _request: Any) -> Any:
        if self._stopping:
            self._stopping -= 1
            raise refusal("UNAVAILABLE", "REPLICA_NOT_READY")
        return balance_pb2.ChargeBalanceResponse()

    async def create_campaign(self, request: Any) -> Any:
        self._campaign.quantity = request.quantity
        self._campaign.fixed_discount.CopyFrom(request.fixed_discount)
        return coupon_pb2.CreateCampaignResponse(campaign=self._campaign)

    async def get_campaign(self, _request: Any) -> Any:
        return coupon_pb2.GetCampaignResponse(campaign=self._campaign)

    async def issue_coupon(self, request: Any) -> Any:
        self._holders[request.user_id] += 1
        if self._holders[request.user_id] > 1:
            raise refusal("ALREADY_EXISTS", "COUPON_ALREADY_ISSUED", retry_after_s=None)
        self._campaign.issued += 1
        coupon = coupon_pb2.Coupon(coupon_id=f"of-{request.user_id}")
        return coupon_pb2.IssueCouponResponse(coupon=coupon)

    async def create_product(self, request: Any) -> Any:
        self._product.stock = request.stock
        self._product.price.CopyFrom(request.price)
        return order_pb2.CreateProductResponse(product=self._product)

    async def get_product(self, _request: Any) -> Any:
        return order_pb2.GetProductResponse(product=self._product)

    async def create_order(self, request: Any) -> Any:
        self._product.sold += 1
        self._product.stock -= 1
        order = order_pb2.Order(order_id=f"of-{request.user_id}")
        return order_pb2.CreateOrderResponse(order=order)

    async def pay_order(self, request: Any) -> Any:
        self.attempts.append(request)
        if len(self.attempts) <= self._put_back:
            raise refusal("UNAVAILABLE", "GATEWAY_UNAVAILABLE", retry_after_s=None)
        order = order_pb2.Order(order_id=request.order_id, state=order_pb2.Order.STATE_PAID)
        order.paid_by_balance.CopyFrom(request.balance_amount)
        order.paid_by_gateway.CopyFrom(self._product.price)
        order.paid_by_gateway.amount_minor -= request.balance_amount.amount_minor
        if request.coupon_id:
            order.paid_by_gateway.amount_minor -= self._campaign.fixed_discount.amount_minor
        return order_pb2.PayOrderResponse(order=order)


@asynccontextmanager
async def serving(*stand_ins: object, replicas: int = 1) -> AsyncIterator[list[str]]:
    """The addresses of servers named payment-0, payment-1 … that run these stand-ins."""
    answers = {
        "".join(map(str.title, name.split("_"))): getattr(each, name)
        for each in stand_ins
        for name in vars(type(each))
        if not name.startswith("_")
    }
    async with AsyncExitStack() as exits:
        yield [
            await exits.enter_async_context(fake_server(Received(), f"payment-{number}", **answers))
            for number in range(replicas)
        ]
