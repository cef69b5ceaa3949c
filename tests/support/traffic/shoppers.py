"""Mixed writes: shoppers charge, deduct, get a coupon, order and pay; then their rows are checked.

Each shopper is a new user, so that its rows are known exactly.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tests.support.balances import charge, deduct, won
from tests.support.coupons import campaign, issue
from tests.support.crowd import in_groups
from tests.support.orders import create_order, create_product
from tests.support.traffic.client import Client

CHARGED: Final = 1_000
DEDUCTED: Final = 10
PRICE: Final = 1_500
DISCOUNT: Final = 1_000
BY_BALANCE: Final = 100
PAUSE_S: Final = 0.02
"""Between two calls of a shopper, to leave the machine time for the services."""
CHECKED_AT_ONCE: Final = 16
FINISHED_LIMIT_S: Final = 120.0

_numbers = itertools.count()


@dataclass
class Shoppers:
    """Shoppers of one campaign and one product."""

    client: Client
    campaign_id: str = ""
    product_id: str = ""
    done: list[str] = field(default_factory=list)
    """The users that have finished."""
    _stopping: bool = False

    @classmethod
    async def create(cls, client: Client) -> Shoppers:
        """With a new campaign and a new product, of which there is always enough."""
        name = f"shop{next(_numbers)}"
        made = await client.insist(
            client.coupon.CreateCampaign, campaign(f"{name}-campaign", quantity=10**6)
        )
        product = await client.insist(
            client.products.CreateProduct, create_product(f"{name}-product", 10**6, price=PRICE)
        )
        return cls(client, made.campaign.campaign_id, product.product.product_id)

    @asynccontextmanager
    async def running(self, count: int) -> AsyncIterator[None]:
        """``count`` shoppers at a time during the block; those that have begun finish."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._shop_on())
            try:
                yield
            finally:
                self._stopping = True

    async def finished(self, more: int) -> None:
        """Wait until ``more`` further shoppers have finished."""
        enough = len(self.done) + more
        async with asyncio.timeout(FINISHED_LIMIT_S):
            while len(self.done) < enough:  # noqa: ASYNC110 - counted by many tasks
                await asyncio.sleep(PAUSE_S)

    async def _shop_on(self) -> None:
        while not self._stopping:
            await self.shop(f"shopper{next(_numbers)}")

    async def shop(self, user_id: str) -> None:
        """Everything that one shopper does. Its request_ids contain its user_id."""
        client, insist = self.client, self._insist
        await insist(client.balance.ChargeBalance, charge(user_id, CHARGED, f"{user_id}-c"))
        await insist(client.balance.DeductBalance, deduct(user_id, DEDUCTED, f"{user_id}-d"))
        issued = await insist(client.coupon.IssueCoupon, issue(self.campaign_id, user_id))
        created = await insist(
            client.orders.CreateOrder, create_order(user_id, {self.product_id: 1}, f"{user_id}-o")
        )
        paid = await insist(
            client.orders.PayOrder,
            order_pb2.PayOrderRequest(
                order_id=created.order.order_id,
                user_id=user_id,
                coupon_id=issued.coupon.coupon_id,
                balance_amount=won(BY_BALANCE),
                payment_key=self.key_of(user_id),
                request_id=f"{user_id}-p",
            ),
        )
        assert paid.order.state == order_pb2.Order.STATE_PAID, paid
        assert paid.order.paid_by_gateway.amount_minor == PRICE - DISCOUNT - BY_BALANCE
        self.done.append(user_id)

    async def _insist(self, method: Any, request: Any) -> Any:
        response = await self.client.insist(method, request)
        await asyncio.sleep(PAUSE_S)
        return response

    def key_of(self, user_id: str) -> str:
        """The payment key of a shopper."""
        return f"{user_id}-key"

    async def check_books(self) -> None:
        """No effect of a successful call is missing or there twice."""
        assert self.done
        client = self.client
        made = await client.call(
            client.coupon.GetCampaign,
            coupon_pb2.GetCampaignRequest(campaign_id=self.campaign_id),
        )
        assert made.campaign.issued == len(self.done)
        got = await client.call(
            client.products.GetProduct, order_pb2.GetProductRequest(product_id=self.product_id)
        )
        assert (got.product.sold, got.product.reserved) == (len(self.done), 0)
        await in_groups(self._check_ledger, self.done, CHECKED_AT_ONCE)

    async def _check_ledger(self, user_id: str) -> None:
        request = balance_pb2.ListLedgerEntriesRequest(user_id=user_id, currency_code="KRW")
        listed = await self.client.call(self.client.balance.ListLedgerEntries, request)
        amounts = [entry.amount.amount_minor for entry in listed.entries]
        assert amounts == [-BY_BALANCE, -DEDUCTED, CHARGED], (user_id, amounts)
        assert [entry.request_id for entry in listed.entries[1:]] == [
            f"{user_id}-d",
            f"{user_id}-c",
        ]
        left = CHARGED - DEDUCTED - BY_BALANCE
        assert listed.entries[0].balance_after.amount_minor == left
