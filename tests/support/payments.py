"""Requests of PaymentService, and replicas of it against a gateway simulator."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import pytest
from pydantic import SecretStr

from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from payment_service.gateway import Charge, ConfirmOutcome
from payment_service.settings import PaymentSettings
from payment_service.toss import TossGateway
from payment_service.wiring import build
from tally.payment.v1 import payment_pb2 as pb
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tally.type.v1.money_pb2 import Money
from tests.support.patience import LONG_S
from tests.support.replicas import channel, replicas

_numbers = itertools.count()

PATIENT_WITH_GATEWAY: Final = {
    "gateway_timeout_s": 30.0,
    "gateway_connect_timeout_s": 10.0,
    "lease_s": 120.0,
}
"""For tests that do not ask what happens when a time limit ends."""
IMPATIENT_WITH_GATEWAY: Final = {
    "gateway_timeout_s": 3.0,
    "gateway_connect_timeout_s": 1.0,
    "lease_s": 120.0,
}
"""For calls that the gateway never answers."""


def key_of(prefix: str = "") -> str:
    """A payment_key that no other test uses: they share one gateway."""
    return f"{prefix}key-{next(_numbers)}"


def confirm(
    payment_key: str,
    request_id: str = "c1",
    *,
    user_id: str = "ann",
    order_id: str = "order-1",
    amount_minor: int = 15_000,
    currency: str = "KRW",
) -> pb.ConfirmPaymentRequest:
    return pb.ConfirmPaymentRequest(
        order_id=order_id,
        user_id=user_id,
        amount=Money(currency_code=currency, amount_minor=amount_minor),
        payment_key=payment_key,
        request_id=request_id,
    )


def cancel(
    confirm_request_id: str = "c1",
    request_id: str = "x1",
    *,
    user_id: str = "ann",
    reason: str = "no longer wanted",
) -> pb.CancelPaymentRequest:
    return pb.CancelPaymentRequest(
        confirm_request_id=confirm_request_id,
        user_id=user_id,
        reason=reason,
        request_id=request_id,
    )


@asynccontextmanager
async def payment_replicas(
    count: int,
    database: ServiceUrls,
    simulator: GatewaySimulator,
    redis_url: str,
    **settings: Any,
) -> AsyncIterator[list[PaymentServiceStub]]:
    """``count`` replicas on one database and gateway; a client of each.

    They wait for the gateway as long as it takes, unless a test is about the end of that.
    """
    settings = {**PATIENT_WITH_GATEWAY, "resolve_interval_s": 0.1, **settings}
    async with (
        replicas(
            count,
            PaymentSettings,
            build,
            database_url=database.runtime,
            redis_url=redis_url,
            gateway_url=simulator.url,
            gateway_secret_key=SecretStr(simulator.secret_key),
            **settings,
        ) as addresses,
        AsyncExitStack() as stack,
    ):
        channels = [await stack.enter_async_context(channel(each)) for each in addresses]
        yield [PaymentServiceStub(opened) for opened in channels]


@contextmanager
def held(payment_key: str) -> Iterator[asyncio.Event]:
    """Keep the gateway's answers to this key's confirmations back until the event is set.

    What a test does meanwhile happens while the key is at the gateway, however slow the machine.
    """
    let_go = asyncio.Event()
    confirm_at_gateway = TossGateway.confirm

    async def kept_back(gateway: TossGateway, charge: Charge) -> ConfirmOutcome:
        told = await confirm_at_gateway(gateway, charge)
        if charge.payment_key == payment_key:
            await let_go.wait()
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TossGateway, "confirm", kept_back)
        try:
            yield let_go
        finally:
            let_go.set()


async def state_of(payment: Any, payment_id: str, *, user_id: str = "ann") -> int:
    got = await payment.GetPayment(pb.GetPaymentRequest(payment_id=payment_id, user_id=user_id))
    return int(got.payment.state)


async def until(seen: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something that happens elsewhere is seen."""
    async with asyncio.timeout(LONG_S):
        while not await seen():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.02)


async def until_state(payment: Any, payment_id: str, state: int) -> None:
    """Wait until the payment is in this state."""

    async def seen() -> bool:
        return await state_of(payment, payment_id) == state

    await until(seen)


async def until_at_gateway(simulator: GatewaySimulator, key: str, status: str) -> None:
    """Wait until the gateway has this key on record, in this status."""

    async def seen() -> bool:
        record = (await asyncio.to_thread(simulator.charges)).get(key)
        return bool(record and record["payment"] and record["payment"]["status"] == status)

    await until(seen)


async def only_payment(payment: Any, *, user_id: str = "ann") -> pb.Payment:
    """The user's one payment."""
    async with asyncio.timeout(LONG_S):
        while True:
            listed = await payment.ListPayments(pb.ListPaymentsRequest(user_id=user_id))
            if listed.payments:
                (only,) = listed.payments
                assert isinstance(only, pb.Payment)
                return only
            await asyncio.sleep(0.02)
