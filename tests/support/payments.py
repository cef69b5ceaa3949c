"""Requests of PaymentService, and replicas of it with a gateway simulator."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Final, TypeAlias, TypeVar

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from common.db.database import Database
from common.db.statements import Connection
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from payment_service.gateway.outcomes import Charge, GatewayOutcome
from payment_service.gateway.toss import TossGateway
from payment_service.settings import PaymentSettings
from payment_service.tables import payments
from payment_service.wiring import build
from tally.payment.v1 import payment_pb2 as pb
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.support.balances import won
from tests.support.replicas import channel, replicas
from tests.support.time_limits import LONG_S

T = TypeVar("T")
_numbers = itertools.count()

LONG_GATEWAY_LIMITS: Final = {
    "gateway_timeout_s": 30.0,
    "gateway_connect_timeout_s": 10.0,
    "lease_s": 120.0,
}
"""For tests in which no time limit may end."""
SHORT_GATEWAY_LIMITS: Final = {
    "gateway_timeout_s": 3.0,
    "gateway_connect_timeout_s": 1.0,
    "lease_s": 120.0,
}
"""For calls without a response of the gateway."""


Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[list[Any]]]
"""Opens replicas and yields a client of each."""


def key_of(prefix: str = "") -> str:
    """A new payment_key: the tests share one gateway."""
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
        amount=won(amount_minor, currency=currency),
        payment_key=payment_key,
        request_id=request_id,
    )


def cancel(
    confirm_request_id: str = "c1",
    request_id: str = "x1",
    *,
    user_id: str = "ann",
    reason: str = "no longer wanted",
    record_only: bool | None = None,
) -> pb.CancelPaymentRequest:
    return pb.CancelPaymentRequest(
        confirm_request_id=confirm_request_id,
        user_id=user_id,
        reason=reason,
        request_id=request_id,
        record_only=record_only,
    )


def resolution(
    payment_id: str,
    outcome: int,
    request_id: str = "r1",
    *,
    amount_minor: int = 0,
    reason: str = "seen at the counter",
) -> pb.ResolvePaymentRequest:
    """``amount_minor``: 0 for none."""
    return pb.ResolvePaymentRequest(
        payment_id=payment_id,
        outcome=outcome,  # type: ignore[arg-type]
        amount=won(amount_minor) if amount_minor else None,
        reason=reason,
        request_id=request_id,
    )


def charged(payment_id: str, request_id: str) -> pb.ResolvePaymentRequest:
    return resolution(payment_id, pb.ResolvePaymentRequest.OUTCOME_CHARGED, request_id)


@asynccontextmanager
async def payment_replicas(
    count: int,
    database: ServiceUrls,
    simulator: GatewaySimulator,
    redis_url: str,
    **settings: Any,
) -> AsyncIterator[list[PaymentServiceStub]]:
    """``count`` replicas on one database and gateway; a client of each."""
    settings = {**LONG_GATEWAY_LIMITS, "resolve_interval_s": 0.1, **settings}
    settings |= {"database_url": database.runtime, "redis_url": redis_url}
    settings |= {"gateway_url": simulator.url}
    settings |= {"gateway_secret_key": SecretStr(simulator.secret_key)}
    async with (
        replicas(count, PaymentSettings, build, **settings) as addresses,
        AsyncExitStack() as stack,
    ):
        channels = [await stack.enter_async_context(channel(each)) for each in addresses]
        yield [PaymentServiceStub(opened) for opened in channels]


async def insert_claim(connection: Connection, key: str, user_id: str = "ann") -> str:
    """Insert the claim of a dead replica, with an expired lease; returns the payment's id."""
    inserting = sa.text(
        "INSERT INTO payments VALUES (gen_random_uuid(), :key, :user_id, 'c1', 'order-1',"
        " 'KRW', 15000, 'toss', 'PENDING', NULL, NULL, NULL, NULL, gen_random_uuid(),"
        " now() - interval '1 s', 0, 1, now(), now()) RETURNING payment_id"
    )
    return str(await connection.scalar(inserting, {"key": key, "user_id": user_id}))


async def unknown_payment(sessions: Database, key: str, user_id: str = "ann") -> str:
    """A payment that the gateway does not know, and that no replica works on; returns its id."""
    async with sessions.begin() as connection:
        payment_id = await insert_claim(connection, key, user_id)
        later = sa.func.now() + sa.text("interval '1 h'")
        await connection.execute(
            sa.update(payments)
            .where(payments.c.payment_id == payment_id)
            .values(state="UNKNOWN", holder=None, due_time=later)
        )
    return payment_id


async def charge(
    gateway: GatewaySimulator, key: str, amount_minor: int, *, idempotency_key: str = ""
) -> None:
    """Confirm at the gateway, past the payment service."""
    async with httpx.AsyncClient(
        base_url=gateway.url, auth=(gateway.secret_key, ""), trust_env=False
    ) as merchant:
        await merchant.post(
            "/v1/payments/confirm",
            json={"paymentKey": key, "orderId": "order-1", "amount": amount_minor},
            headers={"Idempotency-Key": idempotency_key} if idempotency_key else {},
        )


@contextmanager
def held_at_gateway(payment_key: str, operation: str = "confirm") -> Iterator[asyncio.Event]:
    """Delay the responses to ``operation`` on this key until the event is set, or the block ends.

    In the block the key is at the gateway, however slow the machine is.
    """
    release = asyncio.Event()
    call = getattr(TossGateway, operation)

    async def delayed(gateway: TossGateway, charge: Charge, *more: object) -> GatewayOutcome:
        outcome: GatewayOutcome = await call(gateway, charge, *more)
        if charge.payment_key == payment_key:
            await release.wait()
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TossGateway, operation, delayed)
        try:
            yield release
        finally:
            release.set()


async def until(read: Callable[[], Awaitable[T]], arrived: Callable[[T], Any] = bool) -> T:
    """Read again until it is what a test waits for; what was read last."""
    async with asyncio.timeout(LONG_S):
        while not arrived(value := await read()):  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.02)
    return value


async def until_state(payment: Any, payment_id: str, state: int) -> None:
    """Wait until the payment is in this state."""
    asked = pb.GetPaymentRequest(payment_id=payment_id, user_id="ann")
    await until(lambda: payment.GetPayment(asked), lambda got: got.payment.state == state)


async def until_at_gateway(simulator: GatewaySimulator, key: str, status: str) -> None:
    """Wait until the gateway has a payment of this key in this status."""

    async def statuses() -> list[str]:
        payment = (await asyncio.to_thread(simulator.charges)).get(key, {}).get("payment")
        return [payment["status"]] if payment else []

    await until(statuses, lambda found: status in found)


def check_charged_once(charges: Mapping[str, Any], keys: Iterable[str]) -> None:
    """In the gateway's own record each key was confirmed once, charged, and not paid back."""
    seen = Counter(
        (record["confirmCalls"], record["cancelCalls"], record["payment"]["status"])
        for record in (charges[key] for key in keys)
    )
    assert set(seen) == {(1, 0, "DONE")}, seen


async def only_payment(payment: Any, *, user_id: str = "ann") -> pb.Payment:
    """The user's one payment."""
    asked = pb.ListPaymentsRequest(user_id=user_id)
    listed = await until(lambda: payment.ListPayments(asked), lambda found: found.payments)
    (only,) = listed.payments
    assert isinstance(only, pb.Payment)
    return only
