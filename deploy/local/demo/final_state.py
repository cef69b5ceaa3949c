"""What the services return when the sale is over, read through their public API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from deploy.local.demo.customer import Sale
from deploy.local.demo.scenario import CURRENCY, ORDER_EXPIRY_S
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2

SETTLE_LIMIT_S: Final = ORDER_EXPIRY_S + 30.0
"""Enough for the last order to expire, and for the leases of the killed replica to run out."""
POLL_S: Final = 0.5
READERS_MAX: Final = 16
ORDERS_MAX: Final = 500

Order = order_pb2.Order
Saga = order_pb2.Saga
Payment = payment_pb2.Payment
FINAL: Final = frozenset({Order.STATE_PAID, Order.STATE_CANCELLED, Order.STATE_EXPIRED})
OPEN_SAGAS: Final = (Saga.STATE_RUNNING, Saga.STATE_COMPENSATING, Saga.STATE_NEEDS_ATTENTION)

Item = TypeVar("Item")


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
        sagas = await _open_sagas(sale)
        orders = await _for_each(users, lambda user: _orders(sale, user))
        moving = [f"order {order.order_id}" for order in orders if order.state not in FINAL]
        on_progress(len(moving))
        if not (sagas or moving) or time.monotonic() > deadline:
            return await _read(sale, users, orders, [*sagas, *moving])
        await asyncio.sleep(POLL_S)


async def _read(
    sale: Sale, users: Sequence[str], orders: Sequence[order_pb2.Order], unsettled: Sequence[str]
) -> FinalState:
    client, tally = sale.client, sale.client.tally
    campaign = await client.call(
        tally.coupon.get_campaign, coupon_pb2.GetCampaignRequest(campaign_id=sale.campaign_id)
    )
    products = {}
    for name, product_id in sale.products.items():
        found = await client.call(
            tally.product.get_product, order_pb2.GetProductRequest(product_id=product_id)
        )
        products[name] = found.product
    balances = dict(await _for_each(users, lambda user: _balance(sale, user)))
    coupons = await _for_each(users, lambda user: _coupons(sale, user))
    payments = await _for_each(users, lambda user: _payments(sale, user))
    return FinalState(campaign.campaign, products, balances, orders, coupons, payments, unsettled)


async def _open_sagas(sale: Sale) -> list[str]:
    names = []
    for state in OPEN_SAGAS:
        request = order_pb2.ListSagasRequest(state=state)
        listed = await sale.client.call(sale.client.tally.saga.list_sagas, request)
        names += [f"saga {saga.saga_id} ({Saga.State.Name(state)})" for saga in listed.sagas]
    return names


async def _orders(sale: Sale, user: str) -> Iterable[order_pb2.Order]:
    request = order_pb2.ListOrdersRequest(user_id=user, page_size=ORDERS_MAX)
    return (await sale.client.call(sale.client.tally.order.list_orders, request)).orders


async def _balance(sale: Sale, user: str) -> Iterable[tuple[str, int]]:
    request = balance_pb2.GetBalanceRequest(user_id=user, currency_code=CURRENCY)
    found = await sale.client.call(sale.client.tally.balance.get_balance, request)
    return [(user, found.balance.available.amount_minor)]


async def _coupons(sale: Sale, user: str) -> Iterable[coupon_pb2.Coupon]:
    request = coupon_pb2.ListCouponsRequest(user_id=user)
    return (await sale.client.call(sale.client.tally.coupon.list_coupons, request)).coupons


async def _payments(sale: Sale, user: str) -> Iterable[payment_pb2.Payment]:
    request = payment_pb2.ListPaymentsRequest(user_id=user)
    return (await sale.client.call(sale.client.tally.payment.list_payments, request)).payments


async def _for_each(
    users: Sequence[str], read: Callable[[str], Awaitable[Iterable[Item]]]
) -> list[Item]:
    """What ``read`` returns for all users, at most READERS_MAX of them at the same time."""
    slots = asyncio.Semaphore(READERS_MAX)

    async def read_one(user: str) -> Iterable[Item]:
        async with slots:
            return await read(user)

    found = await asyncio.gather(*map(read_one, users))
    return [item for items in found for item in items]
