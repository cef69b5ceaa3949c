"""Bulk calls of 1,000 items. A unit of work is an item."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from google.rpc import status_pb2  # type: ignore[import-untyped]

from benchmarks.load.clients import Clients
from benchmarks.load.http2 import CallError
from benchmarks.shop import Shop, won
from benchmarks.workloads import Workload
from tally.balance.v1 import balance_pb2 as balance
from tally.coupon.v1 import coupon_pb2 as coupon

ITEMS: Final = 1000
BATCH_WRITE: Final = "/tally.balance.v1.BalanceService/BatchWrite"
BATCH_ISSUE: Final = "/tally.coupon.v1.CouponService/BatchIssueCoupons"


def batch_write(shop: Shop) -> Workload:
    """Deductions from accounts at random."""

    def item() -> balance.BatchWriteItem:
        return balance.BatchWriteItem(
            deduct=balance.DeductBalanceRequest(
                user_id=f"user-{random.randrange(shop.size.accounts)}",
                amount=won(1),
                request_id=shop.request_id(next(shop.numbers)),
            )
        )

    async def step(clients: Clients) -> None:
        request = balance.BatchWriteRequest(items=[item() for _ in range(ITEMS)])
        response = await clients.ask("balance", BATCH_WRITE, request, balance.BatchWriteResponse)
        _require_no_error(result.error for result in response.results if result.HasField("error"))

    return Workload(f"BatchWrite, {ITEMS:,} deductions", ("balance",), step, units=ITEMS)


def batch_issue_coupons(shop: Shop) -> Workload:
    """Coupons of one campaign for users who have none."""

    def item() -> coupon.BatchIssueCouponsItem:
        number = next(shop.numbers)
        return coupon.BatchIssueCouponsItem(
            user_id=f"fan-{shop.run}-{number}", request_id=shop.request_id(number)
        )

    async def step(clients: Clients) -> None:
        request = coupon.BatchIssueCouponsRequest(
            campaign_id=shop.campaign_id, items=[item() for _ in range(ITEMS)]
        )
        response = await clients.ask(
            "coupon", BATCH_ISSUE, request, coupon.BatchIssueCouponsResponse
        )
        _require_no_error(result.error for result in response.results if result.HasField("error"))

    return Workload(f"BatchIssueCoupons, {ITEMS:,} users", ("coupon",), step, units=ITEMS)


def _require_no_error(errors: Iterable[status_pb2.Status]) -> None:
    """Raise CallError for the first item that was refused: the whole step counts as failed."""
    for error in errors:
        raise CallError(error.code, error.message)
