"""Faults of money: what is wrong in the books, or waits for the gateway. Each lasts as long as its
block, but for those of an audit's verdict."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tally.balance.v1.balance_pb2 import ChargeBalanceRequest
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally_client import RefundRefused, SagaNotRetryable, Tally
from tests.monitoring.process_faults import without_gateway
from tests.monitoring.watched import POLL_S, Watched
from tests.support.balances import won

LIST_LIMIT_S: Final = 30.0
UNKNOWN: Final = "PAYMENT_OUTCOME_UNKNOWN"


@asynccontextmanager
async def refund_refused(watched: Watched) -> AsyncIterator[None]:
    """The gateway refuses a refund permanently, until a person settles it otherwise."""
    user, confirm_id = "alerts:refund", "alerts:refund:confirm"
    async with watched.client() as tally:
        confirmed = await tally.payment.confirm_payment(
            payment_pb2.ConfirmPaymentRequest(
                order_id="alerts:refund",
                user_id=user,
                amount=won(500),
                payment_key="no_refund_alerts",
                request_id=confirm_id,
            )
        )
        with contextlib.suppress(RefundRefused):
            await tally.payment.cancel_payment(
                payment_pb2.CancelPaymentRequest(
                    confirm_request_id=confirm_id,
                    user_id=user,
                    reason="returned",
                    request_id="alerts:refund:cancel",
                )
            )
        try:
            yield
        finally:
            await tally.payment.resolve_payment(
                payment_pb2.ResolvePaymentRequest(
                    payment_id=confirmed.payment.payment_id,
                    outcome=payment_pb2.ResolvePaymentRequest.OUTCOME_REFUNDED_OUTSIDE,
                    amount=won(500),
                    reason="bank transfer",
                    request_id="alerts:refund:settle",
                )
            )


@asynccontextmanager
async def saga_closed(watched: Watched) -> AsyncIterator[None]:
    """A person closes a saga whose payment cannot be undone while the gateway is away."""
    async with watched.client() as tally, without_gateway(watched):
        await _let_one_stand(tally)
        yield


@asynccontextmanager
async def account_changed(watched: Watched) -> AsyncIterator[None]:
    """Somebody takes money from a user by SQL. An audit follows, and one after it is put back."""
    name = "alerts:changed"
    change = "UPDATE accounts SET available_minor = available_minor - $2 WHERE user_id = $1"
    async with watched.client() as tally, watched.superuser("balance") as session:
        await tally.balance.charge_balance(
            ChargeBalanceRequest(user_id=name, amount=won(100), request_id=f"{name}:c")
        )
        await session.execute(change, name, 1)
        watched.audit_all()
        try:
            yield
        finally:
            await session.execute(change, name, -1)
            watched.audit_all()


@asynccontextmanager
async def deduction_stands(watched: Watched) -> AsyncIterator[None]:
    """A person lets a deduction stand whose payment came to no end while the gateway was away."""
    async with watched.client() as tally:
        async with without_gateway(watched):
            saga_id = await _let_one_stand(tally)
        await _until_resolved(tally, saga_id)
        watched.audit_all()
        try:
            yield
        finally:
            # A case is new in one verdict.
            watched.audit_all()


async def _until_resolved(tally: Tally, saga_id: str) -> None:
    request = order_pb2.ListSagasRequest(state=order_pb2.Saga.STATE_RESOLVED)
    while True:
        resolved = (await tally.saga.list_sagas(request, timeout_s=LIST_LIMIT_S)).sagas
        if any(saga.saga_id == saga_id for saga in resolved):
            return
        await asyncio.sleep(POLL_S)


async def _let_one_stand(tally: Tally) -> str:
    """Resolve the first saga whose payment is unknown, but for its deduction; returns its id."""
    request = order_pb2.ListSagasRequest(state=order_pb2.Saga.STATE_NEEDS_ATTENTION)
    stands = order_pb2.StandingEffect(step="deduct_balance", reason="paid at the counter")
    while True:
        for saga in (await tally.saga.list_sagas(request, timeout_s=LIST_LIMIT_S)).sagas:
            # Another needs no gateway to be undone, and is resolved at once.
            if UNKNOWN not in saga.last_error:
                continue
            # It may have ended meanwhile: then the next one.
            with contextlib.suppress(SagaNotRetryable):
                await tally.saga.resolve_saga(
                    order_pb2.ResolveSagaRequest(
                        saga_id=saga.saga_id,
                        reason="by hand",
                        request_id=saga.saga_id,
                        standing=[stands],
                    )
                )
                return saga.saga_id
        await asyncio.sleep(POLL_S)
