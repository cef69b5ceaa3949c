"""What a caller does, over and over: one workload per line of the report."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.load.clients import Clients
from benchmarks.load.http2 import RESOURCE_EXHAUSTED, CallError
from benchmarks.servers.empty_server import METHOD as EMPTY
from benchmarks.shop import (
    CHARGE,
    CREATE_ORDER,
    ISSUE,
    LINES,
    Shop,
    create_campaign,
    each,
    won,
)
from tally.balance.v1 import balance_pb2 as balance
from tally.coupon.v1 import coupon_pb2 as coupon
from tally.order.v1 import order_pb2 as order

DEDUCT: Final = "/tally.balance.v1.BalanceService/DeductBalance"
GET_BALANCE: Final = "/tally.balance.v1.BalanceService/GetBalance"
GET_PRODUCT: Final = "/tally.order.v1.ProductService/GetProduct"
GET_ORDER: Final = "/tally.order.v1.OrderService/GetOrder"
PAY_ORDER: Final = "/tally.order.v1.OrderService/PayOrder"
BY_BALANCE_MINOR: Final = 1000


async def nothing(_clients: Clients, _steps: int) -> None:
    """A workload that prepares nothing."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One step does ``units`` of work. ``prepare`` makes what that many steps use up."""

    name: str
    servers: tuple[str, ...]
    step: Callable[[Clients], Awaitable[None]]
    units: int = 1
    prepare: Callable[[Clients, int], Awaitable[None]] = nothing


def empty(shop: Shop) -> Workload:
    """The yardstick, with a request of the size of a deduction's."""
    request = _deduction(shop, "user-1234")

    async def step(clients: Clients) -> None:
        await clients.call("empty", EMPTY, request)

    return Workload("empty method", ("empty",), step)


def deduct(shop: Shop, *, accounts: int, server: str = "balance") -> Workload:
    async def step(clients: Clients) -> None:
        user = f"user-{random.randrange(accounts)}"
        await clients.call(server, DEDUCT, _deduction(shop, user))

    how = {"balance": "", "limited": ", rates limited", "orm": " by ORM and polling lock"}[server]
    return Workload(f"DeductBalance{how}, {_accounts(accounts)}", (server,), step)


def _deduction(shop: Shop, user_id: str) -> bytes:
    return balance.DeductBalanceRequest(
        user_id=user_id, amount=won(1), request_id=shop.request_id(next(shop.numbers))
    ).SerializeToString()


def charge(shop: Shop, *, accounts: int) -> Workload:
    async def step(clients: Clients) -> None:
        request = balance.ChargeBalanceRequest(
            user_id=f"user-{random.randrange(accounts)}",
            amount=won(1),
            request_id=shop.request_id(next(shop.numbers)),
        )
        await clients.call("balance", CHARGE, request.SerializeToString())

    return Workload(f"ChargeBalance, {_accounts(accounts)}", ("balance",), step)


def get_balance(shop: Shop) -> Workload:
    async def step(clients: Clients) -> None:
        request = balance.GetBalanceRequest(
            user_id=shop.user(next(shop.numbers)), currency_code="KRW"
        )
        await clients.call("balance", GET_BALANCE, request.SerializeToString())

    return Workload("GetBalance", ("balance",), step)


def get_product(shop: Shop) -> Workload:
    async def step(clients: Clients) -> None:
        request = order.GetProductRequest(product_id=random.choice(shop.products))
        await clients.call("order", GET_PRODUCT, request.SerializeToString())

    return Workload("GetProduct", ("order",), step)


def get_order(shop: Shop) -> Workload:
    async def step(clients: Clients) -> None:
        order_id, user_id = random.choice(shop.orders)
        request = order.GetOrderRequest(order_id=order_id, user_id=user_id)
        await clients.call("order", GET_ORDER, request.SerializeToString())

    return Workload("GetOrder", ("order",), step)


def issue_coupon(shop: Shop, *, shares: int = 1) -> Workload:
    """Of the shop's campaign, or of one with so many shares, for users who have none."""
    campaign_id = shop.campaign_id

    async def prepare(clients: Clients, _steps: int) -> None:
        nonlocal campaign_id
        if shares > 1 and campaign_id == shop.campaign_id:
            campaign_id = await create_campaign(shop, clients, shares=shares)

    async def step(clients: Clients) -> None:
        user = f"fan-{shop.run}-{next(shop.numbers)}"
        request = shop.issue_of(campaign_id, user)
        await clients.call("coupon", ISSUE, request.SerializeToString())

    name = "IssueCoupon, one campaign" + (f" with {shares} shares" if shares > 1 else "")
    return Workload(name, ("coupon",), step, prepare=prepare)


def create_order(shop: Shop, *, hot: bool) -> Workload:
    async def step(clients: Clients) -> None:
        number = next(shop.numbers)
        request = shop.order_of(number, 0 if hot else number * LINES)
        await clients.call("order", CREATE_ORDER, request.SerializeToString())

    where = f"all on {LINES} products" if hot else f"{LINES} of {shop.size.products} products"
    return Workload(f"CreateOrder, {where}", ("order",), step)


def order_and_pay(shop: Shop) -> Workload:
    """CreateOrder, then PayOrder from the balance alone."""

    async def step(clients: Clients) -> None:
        request = await _ordered(shop, clients, next(shop.numbers))
        await clients.call("order", PAY_ORDER, request.SerializeToString())

    return Workload("CreateOrder + PayOrder, balance", ("order",), step)


async def _ordered(shop: Shop, clients: Clients, number: int) -> order.PayOrderRequest:
    """Create an order; the request that pays it."""
    create = shop.order_of(number, number * LINES)
    created = await clients.ask("order", CREATE_ORDER, create, order.CreateOrderResponse)
    return order.PayOrderRequest(
        order_id=created.order.order_id, user_id=create.user_id, request_id=create.request_id
    )


def order_and_pay_by_all(shop: Shop) -> Workload:
    """CreateOrder, then PayOrder by coupon, balance and gateway; the coupons are issued before."""
    coupons: deque[tuple[int, str]] = deque()
    """The number of the user, and the coupon_id."""

    async def prepare(clients: Clients, steps: int) -> None:
        while (missing := steps - len(coupons)) > 0:
            campaign = await create_campaign(shop, clients)

            async def issue(number: int, campaign: str = campaign) -> None:
                request = shop.issue_of(campaign, shop.user(number))
                issued = await clients.ask("coupon", ISSUE, request, coupon.IssueCouponResponse)
                coupons.append((number, issued.coupon.coupon_id))

            # A user gets one coupon of a campaign.
            await each(issue, range(min(missing, shop.size.accounts)))

    async def step(clients: Clients) -> None:
        if not coupons:
            raise CallError(RESOURCE_EXHAUSTED, "too few coupons were prepared")
        user_number, coupon_id = coupons.popleft()
        number = next(shop.numbers)
        create = shop.order_of(number, number * LINES)
        create.user_id = shop.user(user_number)
        created = await clients.ask("order", CREATE_ORDER, create, order.CreateOrderResponse)
        request = order.PayOrderRequest(
            order_id=created.order.order_id,
            user_id=create.user_id,
            coupon_id=coupon_id,
            balance_amount=won(BY_BALANCE_MINOR),
            payment_key=f"bench-{create.request_id}",
            request_id=create.request_id,
        )
        await clients.call("order", PAY_ORDER, request.SerializeToString())

    name = "CreateOrder + PayOrder, coupon, balance and gateway"
    return Workload(name, ("order", "coupon"), step, prepare=prepare)


def _accounts(count: int) -> str:
    return "1 account" if count == 1 else f"{count:,} accounts"
