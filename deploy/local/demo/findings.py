"""What the services say when the sale is over, read through their public API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from deploy.local.demo.customers import Sale
from deploy.local.demo.script import CURRENCY, ORDER_EXPIRY_S
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2

SETTLE_LIMIT_S: Final = ORDER_EXPIRY_S + 30.0
"""The last order may have just begun; a replica's sagas and payments wait out their leases."""
POLL_S: Final = 0.5
READERS_MAX: Final = 16
ORDERS_MAX: Final = 500

Order = order_pb2.Order
Saga = order_pb2.Saga
Payment = payment_pb2.Payment
FINAL: Final = frozenset({Order.STATE_PAID, Order.STATE_CANCELLED, Order.STATE_EXPIRED})

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Findings:
    """The state of the sale after everything has come to its end, or SETTLE_LIMIT_S."""

    campaign: coupon_pb2.Campaign
    products: Mapping[str, order_pb2.Product]
    balances_minor: Mapping[str, int]
    orders: Sequence[order_pb2.Order]
    coupons: Sequence[coupon_pb2.Coupon]
    payments: Sequence[payment_pb2.Payment]
    unsettled: Sequence[str]
    """What has not come to its end."""

    def orders_in(self, state: Order.State.ValueType) -> list[order_pb2.Order]:
        return [order for order in self.orders if order.state == state]


async def settled(sale: Sale, users: Sequence[str], on_look: Callable[[int], None]) -> Findings:
    """The findings, as soon as nothing is in flight; ``on_look`` hears how much still is."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        sagas = await _open_sagas(sale)
        orders = await _each(users, lambda user: _orders(sale, user))
        moving = [f"order {order.order_id}" for order in orders if order.state not in FINAL]
        on_look(len(moving))
        if not (sagas or moving) or time.monotonic() > deadline:
            return await _findings(sale, users, orders, [*sagas, *moving])
        await asyncio.sleep(POLL_S)


async def _findings(
    sale: Sale, users: Sequence[str], orders: Sequence[order_pb2.Order], unsettled: Sequence[str]
) -> Findings:
    shop = sale.shop
    campaign = await shop.ask(
        shop.tally.coupon.get_campaign,
        coupon_pb2.GetCampaignRequest(campaign_id=sale.campaign_id),
    )
    products = {}
    for name, product_id in sale.products.items():
        found = await shop.ask(
            shop.tally.product.get_product,
            order_pb2.GetProductRequest(product_id=product_id),
        )
        products[name] = found.product
    balances = await _each(users, lambda user: _balance(sale, user))
    coupons = await _each(users, lambda user: _coupons(sale, user))
    payments = await _each(users, lambda user: _payments(sale, user))
    return Findings(
        campaign.campaign, products, dict(balances), orders, coupons, payments, unsettled
    )


async def _open_sagas(sale: Sale) -> list[str]:
    names = []
    for state in (
        Saga.STATE_RUNNING,
        Saga.STATE_COMPENSATING,
        Saga.STATE_NEEDS_ATTENTION,
    ):
        listed = await sale.shop.ask(
            sale.shop.tally.saga.list_sagas,
            order_pb2.ListSagasRequest(state=state),
        )
        names += [f"saga {saga.saga_id} ({Saga.State.Name(state)})" for saga in listed.sagas]
    return names


async def _orders(sale: Sale, user: str) -> Iterable[order_pb2.Order]:
    request = order_pb2.ListOrdersRequest(user_id=user, page_size=ORDERS_MAX)
    listed = await sale.shop.ask(sale.shop.tally.order.list_orders, request)
    return listed.orders


async def _balance(sale: Sale, user: str) -> Iterable[tuple[str, int]]:
    request = balance_pb2.GetBalanceRequest(user_id=user, currency_code=CURRENCY)
    found = await sale.shop.ask(sale.shop.tally.balance.get_balance, request)
    return [(user, found.balance.available.amount_minor)]


async def _coupons(sale: Sale, user: str) -> Iterable[coupon_pb2.Coupon]:
    request = coupon_pb2.ListCouponsRequest(user_id=user)
    listed = await sale.shop.ask(sale.shop.tally.coupon.list_coupons, request)
    return listed.coupons


async def _payments(sale: Sale, user: str) -> Iterable[payment_pb2.Payment]:
    request = payment_pb2.ListPaymentsRequest(user_id=user)
    listed = await sale.shop.ask(sale.shop.tally.payment.list_payments, request)
    return listed.payments


async def _each(
    users: Sequence[str], read: Callable[[str], Awaitable[Iterable[Found]]]
) -> list[Found]:
    """What ``read`` finds for all users, a few of them at the same time."""
    room = asyncio.Semaphore(READERS_MAX)

    async def one(user: str) -> Iterable[Found]:
        async with room:
            return await read(user)

    found = await asyncio.gather(*(one(user) for user in users))
    return [item for items in found for item in items]
