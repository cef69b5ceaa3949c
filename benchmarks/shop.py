"""The data that the workloads use: accounts, products, a campaign, orders; made by Tally's API."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.load.clients import Clients
from tally.balance.v1 import balance_pb2 as balance
from tally.coupon.v1 import coupon_pb2 as coupon
from tally.order.v1 import order_pb2 as order
from tally.type.v1.money_pb2 import Money

AT_ONCE: Final = 200
ACCOUNTS: Final = 10_000
PLENTY: Final = 10**12
LINES: Final = 3
PRICE_MINOR: Final = 1000
DISCOUNT_MINOR: Final = 500
FAR_FUTURE_S: Final = 4_000_000_000

CHARGE: Final = "/tally.balance.v1.BalanceService/ChargeBalance"
CREATE_CAMPAIGN: Final = "/tally.coupon.v1.CouponService/CreateCampaign"
ISSUE: Final = "/tally.coupon.v1.CouponService/IssueCoupon"
CREATE_PRODUCT: Final = "/tally.order.v1.ProductService/CreateProduct"
CREATE_ORDER: Final = "/tally.order.v1.OrderService/CreateOrder"


def won(amount_minor: int) -> Money:
    return Money(currency_code="KRW", amount_minor=amount_minor)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is prepared."""

    accounts: int = ACCOUNTS
    products: int = 300

    @property
    def orders(self) -> int:
        """Orders that are only read."""
        return max(1, self.accounts // 10)


@dataclass(slots=True)
class Shop:
    """What has been prepared. Numbers and request_ids are never used twice."""

    size: Size
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:10])
    products: list[str] = field(default_factory=list)
    campaign_id: str = ""
    orders: list[tuple[str, str]] = field(default_factory=list)
    """order_id and user_id of orders that stay as they are, to be read."""
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def request_id(self, number: int) -> str:
        return f"{self.run}-{number}"

    def user(self, number: int) -> str:
        """One of the users with an account; 7919 is prime, so that neighbours are far apart."""
        return f"user-{number * 7919 % self.size.accounts}"

    def order_of(self, number: int, first: int) -> order.CreateOrderRequest:
        """An order of three products, those from ``first`` on."""
        count = len(self.products)
        return order.CreateOrderRequest(
            user_id=self.user(number),
            request_id=self.request_id(number),
            items=[
                order.OrderLine(product_id=self.products[(first + line) % count], quantity=1)
                for line in range(LINES)
            ],
        )

    def issue_of(self, campaign_id: str, user_id: str) -> coupon.IssueCouponRequest:
        return coupon.IssueCouponRequest(
            campaign_id=campaign_id, user_id=user_id, request_id=self.request_id(next(self.numbers))
        )


async def each(work: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    """Do the work for every number, some at once."""
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def create_campaign(shop: Shop, clients: Clients, *, shares: int = 1) -> str:
    """A campaign with coupons for everybody; its campaign_id."""
    number = next(shop.numbers)
    request = coupon.CreateCampaignRequest(
        name=f"Campaign {number}",
        fixed_discount=won(DISCOUNT_MINOR),
        quantity=PLENTY,
        start_time=Timestamp(seconds=1),
        end_time=Timestamp(seconds=FAR_FUTURE_S),
        coupon_lifetime=Duration(seconds=86_400 * 30),
        request_id=shop.request_id(number),
        shares=shares,
    )
    response = await clients.ask("coupon", CREATE_CAMPAIGN, request, coupon.CreateCampaignResponse)
    return response.campaign.campaign_id


async def open_accounts(shop: Shop, clients: Clients) -> None:
    async def open_one(number: int) -> None:
        request = balance.ChargeBalanceRequest(
            user_id=f"user-{number}", amount=won(10**14), request_id=f"{shop.run}-open-{number}"
        )
        await clients.call("balance", CHARGE, request.SerializeToString())

    await each(open_one, range(shop.size.accounts))


async def stock(shop: Shop, clients: Clients) -> None:
    """Make the accounts, products, campaign and orders of ``shop``."""

    async def create_product(number: int) -> None:
        request = order.CreateProductRequest(
            name=f"Product {number}",
            price=won(PRICE_MINOR),
            stock=PLENTY,
            request_id=f"{shop.run}-product-{number}",
        )
        response = await clients.ask("order", CREATE_PRODUCT, request, order.CreateProductResponse)
        shop.products.append(response.product.product_id)

    async def create_order(number: int) -> None:
        request = shop.order_of(next(shop.numbers), number * LINES)
        response = await clients.ask("order", CREATE_ORDER, request, order.CreateOrderResponse)
        shop.orders.append((response.order.order_id, request.user_id))

    await open_accounts(shop, clients)
    await each(create_product, range(shop.size.products))
    shop.campaign_id = await create_campaign(shop, clients)
    await each(create_order, range(shop.size.orders))
