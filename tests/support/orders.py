"""An order service for tests, and its requests, short enough to read in a test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service.settings import OrderSettings
from order_service.wiring import build
from tally.order.v1 import order_pb2 as pb
from tally.order.v1.order_pb2_grpc import CartServiceStub, OrderServiceStub, ProductServiceStub
from tally.type.v1.money_pb2 import Money
from tests.support.replicas import channel, replicas

UNKNOWN_ID: Final = "018f0000-0000-7000-8000-000000000000"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Shop:
    """A client of an order service."""

    products: Any
    carts: Any
    orders: Any

    @classmethod
    def at(cls, opened: grpc.aio.Channel) -> Shop:
        return cls(ProductServiceStub(opened), CartServiceStub(opened), OrderServiceStub(opened))

    async def product(self, stock: int, *, price: int = 100, currency: str = "KRW") -> str:
        """A new product's id."""
        response = await self.products.CreateProduct(
            create_product(f"p{next(_numbers)}", stock, price=price, currency=currency)
        )
        return str(response.product.product_id)

    async def stock(self, product_id: str) -> tuple[int, int, int]:
        """How many are free, reserved and sold."""
        request = pb.GetProductRequest(product_id=product_id)
        product = (await self.products.GetProduct(request)).product
        return product.stock, product.reserved, product.sold

    async def order(self, user_id: str, lines: Mapping[str, int], request_id: str = "") -> pb.Order:
        """A new order."""
        request = create_order(user_id, lines, request_id or f"o{next(_numbers)}")
        response: pb.CreateOrderResponse = await self.orders.CreateOrder(request)
        return response.order

    async def get(self, order: pb.Order) -> pb.Order:
        """The order as it is now."""
        request = pb.GetOrderRequest(order_id=order.order_id, user_id=order.user_id)
        response: pb.GetOrderResponse = await self.orders.GetOrder(request)
        return response.order


@asynccontextmanager
async def shop(count: int = 2, **settings: Any) -> AsyncIterator[Shop]:
    """A client of ``count`` replicas, in turns."""
    async with (
        replicas(count, OrderSettings, build, **settings) as addresses,
        channel(*addresses) as opened,
    ):
        yield Shop.at(opened)


def sql_of(server: PostgresServer, urls: ServiceUrls) -> Callable[[str], str]:
    """Runs SQL in the test's own database as superuser; returns its unaligned output."""
    name = urls.owner.rpartition("/")[2]
    return lambda text: server.run_sql(text, database=name)


def create_product(
    request_id: str, stock: int, *, name: str = "Tea", price: int = 100, currency: str = "KRW"
) -> pb.CreateProductRequest:
    money = Money(currency_code=currency, amount_minor=price)
    return pb.CreateProductRequest(name=name, price=money, stock=stock, request_id=request_id)


def restock(product_id: str, quantity: int, request_id: str) -> pb.RestockProductRequest:
    return pb.RestockProductRequest(product_id=product_id, quantity=quantity, request_id=request_id)


def create_order(user_id: str, lines: Mapping[str, int], request_id: str) -> pb.CreateOrderRequest:
    items = [pb.OrderLine(product_id=id_, quantity=quantity) for id_, quantity in lines.items()]
    return pb.CreateOrderRequest(user_id=user_id, items=items, request_id=request_id)


def cancel(
    order: pb.Order, request_id: str, *, reason: str = "changed my mind", user_id: str = ""
) -> pb.CancelOrderRequest:
    return pb.CancelOrderRequest(
        order_id=order.order_id,
        user_id=user_id or order.user_id,
        reason=reason,
        request_id=request_id,
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
