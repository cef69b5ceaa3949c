"""All four services with a little of everything in their databases, and raw calls of any method."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, Final

import asyncpg
import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from balance_service.settings import BalanceSettings
from balance_service.wiring import build as build_balance
from coupon_service.settings import CouponSettings
from coupon_service.wiring import build as build_coupon
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from order_service.settings import OrderSettings
from order_service.wiring import build as build_order
from payment_service.settings import PaymentSettings
from payment_service.wiring import build as build_payment
from tally.balance.v1 import balance_pb2
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2
from tally.order.v1.order_pb2_grpc import OrderServiceStub
from tally.payment.v1 import payment_pb2
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.support.balances import charge
from tests.support.coupons import campaign, issue
from tests.support.orders import Shop
from tests.support.payments import confirm
from tests.support.replicas import channel, replicas

FILES: Final = tuple(
    module.DESCRIPTOR for module in (balance_pb2, coupon_pb2, order_pb2, payment_pb2)
)
METHODS: Final[tuple[MethodDescriptor, ...]] = tuple(
    method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
)
DEADLINE_S: Final = 60.0
USER: Final = "ann"
OTHER_USER: Final = "bob"
YEAR: Final = timedelta(days=365)

Books = dict[str, dict[str, tuple[int, str]]]


def method_named(name: str) -> MethodDescriptor:
    """The one method of this name."""
    (found,) = [method for method in METHODS if method.name == name]
    return found


def message_class(descriptor: Descriptor) -> type[Message]:
    module = descriptor.file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
    found: type[Message] = getattr(import_module(module), descriptor.name)
    return found


def fresh() -> str:
    """An id that nobody else uses."""
    return f"x-{uuid.uuid4()}"


@dataclass(frozen=True)
class Things:
    """What there is, all of it USER's: two of each at least, to tell one from another."""

    products: list[str]
    campaigns: list[str]
    coupons: list[str]
    pending_orders: list[str]
    paid_orders: list[str]
    sagas: list[str]
    payments: list[str]


@dataclass(frozen=True)
class World:
    """A client of one replica of each service, and a look into their databases."""

    channels: dict[str, grpc.aio.Channel]
    databases: dict[str, asyncpg.Connection[Any]]
    looks: dict[str, str]
    gateway: GatewaySimulator
    things: Things

    async def call(self, method: MethodDescriptor, request: Message | bytes) -> Any:
        """The response, of a stream its first; raises AioRpcError."""
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        assert method.containing_service is not None
        name = f"/{method.containing_service.full_name}/{method.name}"
        opened: Any = self.channels[method.containing_service.file.package.split(".")[1]]
        if method.server_streaming:
            async for answer in opened.unary_stream(name)(raw, timeout=DEADLINE_S):
                return message_class(method.output_type).FromString(answer)
            raise AssertionError(f"{name} ended without a word")
        answer = await opened.unary_unary(name)(raw, timeout=DEADLINE_S)
        return message_class(method.output_type).FromString(answer)

    async def books(self) -> Books:
        """How many rows each table of each database has, and a digest of them all."""
        found = await asyncio.gather(
            *(database.fetch(self.looks[service]) for service, database in self.databases.items())
        )
        return {
            service: {name: (count, digest) for name, count, digest in rows}
            for service, rows in zip(self.databases, found, strict=True)
        }

    @asynccontextmanager
    async def untouched(self) -> AsyncIterator[None]:
        """Nothing is written in the block, not a row of any table.

        Nothing is charged, then, either: a payment has its row before the gateway is asked.
        """
        before = await self.books()
        yield
        after = await self.books()
        for service, tables in before.items():
            changed = [name for name, rows in tables.items() if after[service][name] != rows]
            assert changed == [], f"written to {service}: {changed}"


async def _look_at(database: asyncpg.Connection[Any]) -> str:
    """The query that ``books`` asks a database."""
    tables = await database.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    )
    assert len(tables) >= 3, "the answers, the schema's version, and the business itself"
    return " UNION ALL ".join(
        f"SELECT '{row[0]}', count(*), md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), ''))"
        f' FROM "{row[0]}" t'
        for row in tables
    )


@asynccontextmanager
async def opened_world(
    urls: dict[str, ServiceUrls], gateway: GatewaySimulator, redis_url: str
) -> AsyncIterator[World]:
    """One replica of each service, and the things."""
    async with AsyncExitStack() as stack:
        addresses: dict[str, list[str]] = {}
        for service, settings_type, build in (
            ("balance", BalanceSettings, build_balance),
            ("coupon", CouponSettings, build_coupon),
            ("payment", PaymentSettings, build_payment),
            ("order", OrderSettings, build_order),
        ):
            special: dict[str, Any] = {}
            if service == "payment":
                special = {"gateway_url": gateway.url, "gateway_secret_key": gateway.secret_key}
            elif service == "order":
                special = {f"{peer}_address": told[0] for peer, told in addresses.items()}
            running = replicas(
                1,
                settings_type,
                build,  # type: ignore[arg-type]  # each goes with its settings
                database_url=urls[service].runtime,
                redis_url=redis_url,
                **special,
            )
            addresses[service] = await stack.enter_async_context(running)
        channels = {
            service: await stack.enter_async_context(channel(*told))
            for service, told in addresses.items()
        }
        databases = {}
        for service, told_urls in urls.items():
            databases[service] = await asyncpg.connect(told_urls.owner)
            stack.push_async_callback(databases[service].close)
        looks = {service: await _look_at(database) for service, database in databases.items()}
        yield World(channels, databases, looks, gateway, await _things(channels))


async def _things(channels: dict[str, grpc.aio.Channel]) -> Things:
    balance: Any = BalanceServiceStub(channels["balance"])
    for user_id in (USER, OTHER_USER):
        for currency in ("KRW", "USD"):
            for number in range(2):
                request_id = f"c-{currency}-{number}"
                await balance.ChargeBalance(
                    charge(user_id, 1_000_000, request_id, currency=currency)
                )
    campaigns, coupons = await _coupons(channels["coupon"])
    payment: Any = PaymentServiceStub(channels["payment"])
    payments = [
        (await payment.ConfirmPayment(confirm(fresh(), fresh(), user_id=user_id))).payment
        for user_id in (USER, USER, USER, OTHER_USER, OTHER_USER)
    ]
    shop = Shop.at(channels["order"])
    products = [await shop.product(1_000, price=5_000) for _ in range(3)]
    orders = [
        (await shop.order(user_id, {products[0]: 2}, fresh())).order_id
        for user_id in (USER,) * 8 + (OTHER_USER,) * 2
    ]
    paid = orders[:3]
    order: Any = OrderServiceStub(channels["order"])
    for order_id in paid:
        await order.PayOrder(
            order_pb2.PayOrderRequest(order_id=order_id, user_id=USER, request_id=fresh())
        )
    list_sagas: Any = channels["order"].unary_unary(
        "/tally.order.v1.SagaService/ListSagas",
        response_deserializer=order_pb2.ListSagasResponse.FromString,
    )
    sagas = [saga.saga_id for saga in (await list_sagas(b"")).sagas]
    return Things(
        products=products,
        campaigns=campaigns,
        coupons=coupons,
        pending_orders=orders[3:8],
        paid_orders=paid,
        sagas=sagas,
        payments=[payment.payment_id for payment in payments[:3]],
    )


async def _coupons(opened: grpc.aio.Channel) -> tuple[list[str], list[str]]:
    """Campaigns, and a coupon of USER's of each but the last."""
    coupon: Any = CouponServiceStub(opened)
    campaigns: list[str] = []
    for _ in range(5):
        made = await coupon.CreateCampaign(campaign(fresh(), ends_in=YEAR, lifetime=YEAR))
        campaigns.append(made.campaign.campaign_id)
    issued = [
        await coupon.IssueCoupon(issue(campaign_id, user_id, fresh()))
        for user_id in (OTHER_USER, USER)
        for campaign_id in campaigns[:-1]
    ]
    return campaigns, [each.coupon.coupon_id for each in issued if each.coupon.user_id == USER]


def every_field() -> Iterator[tuple[MethodDescriptor, str]]:
    """Each field of each method's request."""
    for method in METHODS:
        for field in method.input_type.fields:
            yield method, field.name
