"""Adapters of the gateway under test, and what they confirm."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr

from common.money import Money
from payment_service.gateway.outcomes import Charge
from payment_service.gateway.toss import TossGateway, TossOptions
from tests.support.gateway_wire import Reply, Request, reply
from tests.support.time_limits import LONG_S

AWAITS_MAX = 100
"""More than any exchange has."""


def charge(number: object) -> Charge:
    return Charge(f"key-{number}", "order-1", Money("KRW", 15_000), f"confirmation-{number}")


def paid(request: Request) -> Reply:
    """What a gateway returns to a confirm."""
    return reply(
        200,
        {
            "paymentKey": request.json["paymentKey"],
            "orderId": "order-1",
            "status": "DONE",
            "currency": "KRW",
            "totalAmount": 15_000,
            "balanceAmount": 15_000,
            "lastTransactionKey": "transaction-1",
        },
    )


async def pays(request: Request) -> Reply:
    await asyncio.sleep(0)
    return paid(request)


@asynccontextmanager
async def adapter(url: str, **options: Any) -> AsyncIterator[TossGateway]:
    limits = {"timeout_s": LONG_S, "connect_timeout_s": LONG_S, **options}
    toss = TossGateway(TossOptions(url, SecretStr("secret"), **limits))
    try:
        yield toss
    finally:
        await toss.aclose()


async def confirmed(toss: TossGateway, count: int) -> Counter[type]:
    """The outcomes of as many confirms at once."""
    numbers = range(count)
    return Counter(map(type, await asyncio.gather(*(toss.confirm(charge(n)) for n in numbers))))
