"""What the services return when the sale is over, read through their public API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.local.demo.client import DemoClient, Request, Response
from deploy.local.demo.customer import Sale
from deploy.local.demo.scenario import CURRENCY, ORDER_EXPIRY_S
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally_client import Unary

SETTLE_LIMIT_S: Final = ORDER_EXPIRY_S + 30.0
"""Enough for the last order to expire, and for the leases of the killed replica to run out."""
POLL_S: Final = 0.5
READERS_MAX: Final = 16
ORDERS_MAX: Final = 500

Order = order_pb2.Order
Saga = order_pb2.Saga
Payment = payment_pb2.Payment
FINAL: Final = frozenset({Order.STATE_PAID, Order.STATE_CANCELLED, Order.STATE_EXPIRED})
OPEN_SAGAS: Final = (
    Saga.STATE_RUNNING,
    Saga.STATE_COMPENSATING,
    Saga.STATE_NEEDS_ATTENTION,
    Saga.STATE_RESOLVING,
)


@dataclass(frozen=True, slots=True)
class FinalState:
    """The state after every order and saga has ended, or after SETTLE_LIMIT_S."""

    campaign: coupon_pb2.Campaign
    products: Mapping[str, order_pb2.Product]
    """By name."""
    balances_minor: Mapping[str, int]
    """By user."""
    orders: Sequence[order_pb2.Order]
    coupons: Sequence[coupon_pb2.Coupon]
    payments: Sequence[payment_pb2.Payment]
    unsettled: Sequence[str]
    """Orders and sagas that have not ended."""

    def orders_in(self, state: Order.State.ValueType) -> list[order_pb2.Order]:
        return [order for order in self.orders if order.state == state]


async def wait_for_final_state(
    sale: Sale, users: Sequence[str], on_progress: Callable[[int], None]
) -> FinalState:
    """Wait until nothing is in flight; ``on_progress`` gets the number of orders that still are."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        sagas = await _open_sagas(sale.client)
        orders = await _orders(sale.client, users)
        moving = [f"order {order.order_id}" for order in orders if order.state not in FINAL]
        on_progress(len(moving))
        if not (sagas or moving) or time.monotonic() > deadline:
            return await _read(sale, users, orders, [*sagas, *moving])
        await asyncio.sleep(POLL_S)


async def _open_sagas(client: DemoClient) -> list[str]:
    requests = [order_pb2.ListSagasRequest(state=state) for state in OPEN_SAGAS]
    return [
        f"saga {saga.saga_id} ({Saga.State.Name(saga.state)})"
        for response in await _call_each(client, client.tally.saga.list_sagas, requests)
        for saga in response.sagas
    ]


async def _orders(client: DemoClient, users: Sequence[str]) -> list[order_pb2.Order]:
    requests = [order_pb2.ListOrdersRequest(user_id=user, page_size=ORDERS_MAX) for user in users]
    responses = await _call_each(client, client.tally.order.list_orders, requests)
    return [order for response in responses for order in response.orders]


async def _read(
    sale: Sale, users: Sequence[str], orders: Sequence[order_pb2.Order], unsettled: Sequence[str]
) -> FinalState:
    client, tally = sale.client, sale.client.tally
    campaign = await client.call(
        tally.coupon.get_campaign, coupon_pb2.GetCampaignRequest(campaign_id=sale.campaign_id)
    )
    products = await _call_each(
        client,
        tally.product.get_product,
        [order_pb2.GetProductRequest(product_id=id_) for id_ in sale.products.values()],
    )
    balances = await _call_each(
        client,
        tally.balance.get_balance,
        [balance_pb2.GetBalanceRequest(user_id=user, currency_code=CURRENCY) for user in users],
    )
    coupons = await _call_each(
        client,
        tally.coupon.list_coupons,
        [coupon_pb2.ListCouponsRequest(user_id=user) for user in users],
    )
    payments = await _call_each(
        client,
        tally.payment.list_payments,
        [payment_pb2.ListPaymentsRequest(user_id=user) for user in users],
    )
    return FinalState(
        campaign=campaign.campaign,
        products={name: one.product for name, one in zip(sale.products, products, strict=True)},
        balances_minor={
            one.balance.user_id: one.balance.available.amount_minor for one in balances
        },
        orders=orders,
        coupons=[coupon for response in coupons for coupon in response.coupons],
        payments=[payment for response in payments for payment in response.payments],
        unsettled=unsettled,
    )


async def _call_each(
    client: DemoClient, method: Unary[Request, Response], requests: Sequence[Request]
) -> list[Response]:
    """The responses, in order, of at most READERS_MAX calls at the same time."""
    slots = asyncio.Semaphore(READERS_MAX)

    async def call(request: Request) -> Response:
        async with slots:
            return await client.call(method, request)

    return await asyncio.gather(*map(call, requests))
