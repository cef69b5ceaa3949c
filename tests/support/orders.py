"""An order service for tests, its requests, and ways to remove its guards from outside."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import grpc
import pytest
import sqlalchemy as sa

from common.db.database import open_pools
from common.db.idempotency import IdempotencyStore
from common.locking.locks import NoLocks
from deploy.local.postgres_roles import ServiceUrls
from order_service import tables
from order_service.settings import OrderSettings
from order_service.store import order as order_store
from order_service.store import product as product_store
from order_service.use_cases.order import Orders
from order_service.use_cases.order_decider import OrderDecider, OrderTimes
from order_service.use_cases.order_lane import OrderLane
from order_service.use_cases.watch import Watches
from order_service.wiring import build
from tally.order.v1 import order_pb2 as pb
from tally.order.v1.order_pb2_grpc import (
    CartServiceStub,
    OrderServiceStub,
    ProductServiceStub,
    SagaServiceStub,
    SeatServiceStub,
)
from tests.support.balances import won
from tests.support.crowd import Crowd
from tests.support.replicas import channel, replicas

UNKNOWN_ID: Final = "018f0000-0000-7000-8000-000000000000"
_numbers = itertools.count()


def fresh(prefix: str = "x") -> str:
    """An id or a payment_key that no other call has."""
    return f"{prefix}{next(_numbers)}"


@dataclass(frozen=True)
class Shop:
    """A client of an order service."""

    products: Any
    carts: Any
    orders: Any
    sagas: Any
    seats: Any

    @classmethod
    def at(cls, opened: grpc.aio.Channel) -> Shop:
        stubs = (
            *(ProductServiceStub, CartServiceStub, OrderServiceStub, SagaServiceStub),
            SeatServiceStub,
        )
        return cls(*(stub(opened) for stub in stubs))

    async def product(self, stock: int, *, price: int = 100, currency: str = "KRW") -> str:
        """A new product's id."""
        response = await self.products.CreateProduct(
            create_product(fresh("p"), stock, price=price, currency=currency)
        )
        return str(response.product.product_id)

    async def stock(self, product_id: str) -> tuple[int, int, int]:
        """How many are free, reserved and sold."""
        request = pb.GetProductRequest(product_id=product_id)
        product = (await self.products.GetProduct(request)).product
        return product.stock, product.reserved, product.sold

    async def order(self, user_id: str, lines: Mapping[str, int], request_id: str = "") -> pb.Order:
        """A new order."""
        request = create_order(user_id, lines, request_id or fresh("o"))
        response: pb.CreateOrderResponse = await self.orders.CreateOrder(request)
        return response.order

    async def get(self, order: pb.Order) -> pb.Order:
        """The order as it is now."""
        request = pb.GetOrderRequest(order_id=order.order_id, user_id=order.user_id)
        response: pb.GetOrderResponse = await self.orders.GetOrder(request)
        return response.order

    async def cart(self, user_id: str) -> pb.Cart:
        response: pb.GetCartResponse = await self.carts.GetCart(pb.GetCartRequest(user_id=user_id))
        return response.cart


@asynccontextmanager
async def open_shop(count: int = 2, **settings: Any) -> AsyncIterator[Shop]:
    """A client of ``count`` replicas, in turns."""
    async with (
        replicas(count, OrderSettings, build, **settings) as addresses,
        channel(*addresses) as opened,
    ):
        yield Shop.at(opened)


@asynccontextmanager
async def sweeper(urls: ServiceUrls) -> AsyncIterator[Orders]:
    """The orders of one more replica without a server, which sweeps when the test calls it."""
    database = open_pools(urls.runtime, application_name="sweeper", pool_size=3)
    idempotency, watches = IdempotencyStore(tables.answers), Watches(database)
    times = OrderTimes(expiry=timedelta(minutes=15), pay_within_s=20.0, saga_lease_s=10.0)
    decider = OrderDecider(idempotency, times, owner="sweeper")
    lane = OrderLane(database, NoLocks(), decider, watches.report)
    no_runner: Any = None  # it begins no saga
    try:
        yield Orders(database, lane, no_runner, watches, idempotency)
    finally:
        await lane.close()
        await database.close()


# -- requests ------------------------------------------------------------------------------------


def create_product(
    request_id: str, stock: int, *, name: str = "Tea", price: int = 100, currency: str = "KRW"
) -> pb.CreateProductRequest:
    money = won(price, currency=currency)
    return pb.CreateProductRequest(name=name, price=money, stock=stock, request_id=request_id)


def restock(product_id: str, quantity: int, request_id: str) -> pb.RestockProductRequest:
    return pb.RestockProductRequest(product_id=product_id, quantity=quantity, request_id=request_id)


def create_order(user_id: str, lines: Mapping[str, int], request_id: str) -> pb.CreateOrderRequest:
    items = [pb.OrderLine(product_id=id_, quantity=quantity) for id_, quantity in lines.items()]
    return pb.CreateOrderRequest(user_id=user_id, items=items, request_id=request_id)


def pay(order: pb.Order, request_id: str = "", **fields: Any) -> pb.PayOrderRequest:
    """Pay the order: ``coupon_id``, ``balance`` (won), ``payment_key``."""
    if (balance := fields.pop("balance", None)) is not None:
        fields["balance_amount"] = won(balance)
    fields |= {"order_id": order.order_id, "user_id": order.user_id}
    return pb.PayOrderRequest(request_id=request_id or fresh("pay"), **fields)


def cancel(
    order: pb.Order, request_id: str, *, reason: str = "changed my mind"
) -> pb.CancelOrderRequest:
    return pb.CancelOrderRequest(
        order_id=order.order_id, user_id=order.user_id, reason=reason, request_id=request_id
    )


def set_item(
    user_id: str, product_id: str, quantity: int, *, expected_version: int | None = None
) -> pb.SetCartItemRequest:
    return pb.SetCartItemRequest(
        user_id=user_id,
        product_id=product_id,
        quantity=quantity,
        expected_version=expected_version,
    )


# -- the database --------------------------------------------------------------------------------


def ordered(crowd: Crowd[Shop], product_id: str) -> int:
    """How many of the product are in pending orders."""
    return crowd.number(
        "SELECT coalesce(sum(quantity), 0) FROM order_items JOIN orders USING (order_id)"
        f" WHERE product_id = '{product_id}' AND state = 'PENDING'"
    )


def reserved(crowd: Crowd[Shop], product_id: str) -> int:
    return crowd.number(f"SELECT reserved FROM products WHERE product_id = '{product_id}'")


def forget_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write products and orders whatever has become of them since they were read."""
    counts, product = product_store._changed, tables.products
    monkeypatch.setattr(
        product_store,
        "_SAVE",
        sa.update(product)
        .values(
            {name: product.c[name] + counts.c[name] for name in product_store._COUNTS}
            | {"seats_version": product.c.version + counts.c.version}
        )
        .where(product.c.product_id == counts.c.product_id),
    )
    changed = order_store._changed
    monkeypatch.setattr(
        order_store,
        "_SAVE",
        sa.update(tables.orders)
        .values({name: changed.c[name] for name in order_store._MUTABLE})
        .where(tables.orders.c.order_id == changed.c.order_id),
    )


def drop_constraint(crowd: Crowd[Shop], name: str) -> None:
    table = name.partition("_")[0]
    crowd.sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
