"""All four services with rows of every kind in their databases, and raw calls of every method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import asyncpg
import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from deploy.local.gateway.simulator import GatewaySimulator
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2 as order
from tests.integration.contract.invalid_values import LIMIT
from tests.integration.contract.statuses import ExpectedStatus, Status
from tests.integration.contract.valid_requests import USER, Seed, fresh, valid_request
from tests.support.balances import charge
from tests.support.contract import METHODS_BY_NAME, message_class
from tests.support.coupons import campaign, decided, issue, queue
from tests.support.orders import create_order, create_product
from tests.support.payments import confirm
from tests.support.replicas import channel
from tests.support.seats import add_seats, labels, order_seats
from tests.support.stack import Stack

DEADLINE_S: Final = 60.0
OTHER_USER: Final = "bob"
YEAR: Final = timedelta(days=365)

Tables = dict[str, dict[str, tuple[int, str]]]
"""The number of rows of each table of each service's database, and a digest of them."""


def method_of(request: Message) -> MethodDescriptor:
    """The method that takes this request."""
    return METHODS_BY_NAME[request.DESCRIPTOR.name.removesuffix("Request")]


@dataclass
class Services:
    """A client of one replica of each service, and a view of their databases."""

    channels: dict[str, grpc.aio.Channel]
    gateway: GatewaySimulator
    databases: dict[str, asyncpg.Connection[Any]] = field(default_factory=dict)
    seed: Seed = field(init=False)
    _queries: dict[str, str] = field(default_factory=dict)

    def valid(self, name: str, **changes: Any) -> Any:
        """A request of the method that would succeed, with some fields changed."""
        return valid_request(name, self.seed, **changes)

    async def call(self, request: Message) -> Any:
        """The response of the request's method. Raises AioRpcError."""
        return await self.call_raw(method_of(request), request.SerializeToString())

    async def call_raw(self, method: MethodDescriptor, raw: bytes) -> Any:
        """The response to these bytes, of a stream its first. Raises AioRpcError."""
        service = method.containing_service
        opened: Any = self.channels[service.file.package.split(".")[1]]
        path = f"/{service.full_name}/{method.name}"
        parse = message_class(method.output_type).FromString
        if method.server_streaming:
            async for answer in opened.unary_stream(path)(raw, timeout=DEADLINE_S):
                return parse(answer)
            raise AssertionError(f"{path} ended without a response")
        response = parse(await opened.unary_unary(path)(raw, timeout=DEADLINE_S))
        if method.name == "QueueCoupon":
            # Its coupon is written later, which must not be in the midst of another test.
            await decided(CouponServiceStub(opened), response.ticket)
        return response

    async def status(self, method: MethodDescriptor, raw: bytes) -> Status | None:
        """The status that these bytes return; None if the call succeeds."""
        try:
            await self.call_raw(method, raw)
        except grpc.aio.AioRpcError as error:
            return Status.of(error)
        return None

    async def differences(self, request: Message, expected: ExpectedStatus) -> list[str]:
        """How the request's status differs from the expected one; empty if it does not."""
        return await self.raw_differences(method_of(request), request.SerializeToString(), expected)

    async def raw_differences(
        self, method: MethodDescriptor, raw: bytes, expected: ExpectedStatus
    ) -> list[str]:
        """As ``differences``, for bytes that need not be a request."""
        status = await self.status(method, raw)
        return ["succeeded"] if status is None else status.differences(expected)

    async def tables(self) -> Tables:
        found = await asyncio.gather(
            *(database.fetch(self._queries[name]) for name, database in self.databases.items())
        )
        return {
            service: {name: (count, digest) for name, count, digest in rows}
            for service, rows in zip(self.databases, found, strict=True)
        }

    async def written(self, before: Tables) -> set[str]:
        """The tables that were written since, as ``service.table``."""
        return {
            f"{service}.{name}"
            for service, tables in (await self.tables()).items()
            for name, rows in tables.items()
            if rows != before[service][name]
        }

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        """Nothing is written in the block, in no table of no service.

        Nothing is charged either: a payment has a row before the gateway is called.
        """
        before = await self.tables()
        yield
        written = await self.written(before)
        assert written == set(), f"written to {sorted(written)}"

    async def connect(self, service: str, url: str) -> None:
        """Connect to the service's database."""
        database = self.databases[service] = await asyncpg.connect(url)
        tables = await database.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            # It is written all the time, whatever is called.
            " AND tablename <> 'heartbeat' ORDER BY tablename"
        )
        assert len(tables) >= 3, "idempotency records, the schema's version, and the service's own"
        rows = "string_agg(t::text, '|' ORDER BY t::text)"
        self._queries[service] = " UNION ALL ".join(
            f"SELECT '{name}', count(*), md5(coalesce({rows}, '')) FROM \"{name}\" t"
            for (name,) in tables
        )


@asynccontextmanager
async def seeded_services(
    stack: Stack, *, through: Callable[[grpc.aio.Channel], Any] = lambda opened: opened
) -> AsyncIterator[Services]:
    """A client of the stack's services, with rows of every kind in their databases.

    ``through``: what its calls go through instead of a channel.
    """
    async with AsyncExitStack() as exits:
        addresses = {**stack.peers, "order": stack.order_addresses}
        channels = {
            service: through(await exits.enter_async_context(channel(*listed)))
            for service, listed in addresses.items()
        }
        services = Services(channels, stack.gateway)
        for service, urls in stack.databases.urls.items():
            await services.connect(service, urls.owner)
            exits.push_async_callback(services.databases[service].close)
        services.seed = await _seed(services)
        yield services


async def _seed(services: Services) -> Seed:
    call = services.call
    entries = {
        user_id: [
            (await call(charge(user_id, 1_000_000, fresh(), currency=currency))).entry.entry_id
            for currency in ("KRW", "USD")
            for _ in range(2)
        ]
        for user_id in (OTHER_USER, USER)
    }
    campaigns = [
        (
            await call(campaign(fresh(), quantity=1_000, ends_in=YEAR, lifetime=YEAR))
        ).campaign.campaign_id
        for _ in range(5)
    ]
    # A coupon of each campaign but the last.
    coupons = {
        user_id: [
            (await call(issue(campaign_id, user_id, fresh()))).coupon.coupon_id
            for campaign_id in campaigns[:-1]
        ]
        for user_id in (OTHER_USER, USER)
    }
    queued = [
        (await call(campaign(fresh(), ends_in=YEAR, queue_only=True))).campaign.campaign_id
        for _ in range(2)
    ]
    tickets = [(await call(queue(each, USER, fresh()))).ticket.ticket_id for each in queued]
    payments = [
        (await call(confirm(fresh(), fresh(), user_id=user_id))).payment
        for user_id in (USER,) * 3 + (OTHER_USER,) * 2
    ]

    async def product(price: int, stock: int = 10**12, currency: str = "KRW") -> str:
        request = create_product(fresh(), stock, price=price, currency=currency)
        return str((await call(request)).product.product_id)

    products = [await product(5_000, stock=1_000) for _ in range(3)]
    show = await product(10, stock=0)
    await call(add_seats(show, labels(4), fresh()))
    await call(order_seats(USER, {show: labels(1)}))
    orders = [
        (await call(create_order(user_id, {products[0]: 2}, fresh()))).order.order_id
        for user_id in (USER,) * 8 + (OTHER_USER,) * 2
    ]
    for order_id in orders[:3]:
        await call(order.PayOrderRequest(order_id=order_id, user_id=USER, request_id=fresh()))
    return Seed(
        entries=entries[USER],
        products=products,
        campaigns=campaigns,
        coupons=coupons[USER],
        tickets=tickets,
        queued=queued[0],
        split=(await call(campaign(fresh(), shares=2, ends_in=YEAR))).campaign.campaign_id,
        pending_orders=orders[3:8],
        paid_orders=orders[:3],
        sagas=[saga.saga_id for saga in (await call(order.ListSagasRequest())).sagas],
        payments=[payment.payment_id for payment in payments[:3]],
        payment_keys=[payment.payment_key for payment in payments[:3]],
        dollar_product=await product(1, currency="USD"),
        show=show,
        product_of_price={price: await product(price) for price in (LIMIT, LIMIT // 2, 1)},
    )
