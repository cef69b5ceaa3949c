"""A replica with too few connections to a slow gateway: overloaded, which is no failure of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from payment_service.model.confirmation import Confirmation
from tally.payment.v1 import payment_pb2 as pb
from tests.support.gateway_wire import LOST, GatewayWire, Reply, Request, gateway_wire, reply
from tests.support.payments import Serve, cancel, confirm, key_of, until
from tests.support.refusals import outcome, refused

SLOTS = 2
FULL = {"gateway_connections_max": SLOTS, "gateway_connect_timeout_s": 0.3}
NO_SWEEP = {"resolve_interval_s": 60.0}


@dataclass
class StandIn:
    """A gateway whose payments are all paid, and which replies when it is let."""

    wire: GatewayWire
    open: asyncio.Event
    secret_key: str = "secret"

    @property
    def url(self) -> str:
        return self.wire.url


@asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    released = asyncio.Event()
    released.set()

    async def answer(request: Request) -> Reply:
        await released.wait()
        cancelling = request.target.endswith("/cancel")
        key = request.target.split("/")[3] if cancelling else request.json["paymentKey"]
        payment = {
            "paymentKey": key,
            "orderId": "order-1",
            "status": "CANCELED" if cancelling else "DONE",
            "currency": "KRW",
            "totalAmount": 15_000,
            "balanceAmount": 0 if cancelling else 15_000,
            "lastTransactionKey": f"transaction-{key}",
        }
        return reply(200, payment)

    async with gateway_wire(answer) as wire:
        yield StandIn(wire, released)


async def fill(gateway: StandIn, payment: Any) -> list[asyncio.Future[Any]]:
    """Calls that have every slot until the gateway replies."""
    gateway.open.clear()
    before = len(gateway.wire.requests)
    calls = [
        asyncio.ensure_future(payment.ConfirmPayment(confirm(key_of(), f"full-{number}")))
        for number in range(SLOTS)
    ]

    async def arrived() -> bool:
        return len(gateway.wire.requests) == before + SLOTS

    await until(arrived)
    return calls


async def test_a_confirmation_without_a_slot_is_overloaded_and_frees_its_key(serve: Serve) -> None:
    async with (
        stand_in() as gateway,
        serve(1, cast("Any", gateway), gateway_breaker_failures=2, **FULL) as (payment,),
    ):
        first = await fill(gateway, payment)
        late = [confirm(key_of(), f"late-{number}") for number in range(5)]
        refusals = await asyncio.gather(*(outcome(payment.ConfirmPayment(one)) for one in late))
        assert Counter(refusals) == {"OVERLOADED": len(late)}
        with refused("OVERLOADED") as raised:
            await payment.ConfirmPayment(late[0])
        assert raised.refusal.retry_after_s is not None
        listed = await payment.ListPayments(pb.ListPaymentsRequest(user_id="ann"))
        assert len(listed.payments) == SLOTS
        gateway.open.set()
        await asyncio.gather(*first)
        # The circuit is closed, and the keys are free: for these requests and for others.
        for number, one in enumerate(late):
            one.request_id = f"{one.request_id}-again" if number % 2 else one.request_id
            assert not (await payment.ConfirmPayment(one)).replayed


async def test_a_cancellation_without_a_slot_is_stored_and_carried_out_later(serve: Serve) -> None:
    async with (
        stand_in() as gateway,
        serve(1, cast("Any", gateway), **FULL, **NO_SWEEP) as (payment,),
    ):
        paid = (await payment.ConfirmPayment(confirm(key_of()))).payment
        first = await fill(gateway, payment)
        with refused("OVERLOADED") as raised:
            await payment.CancelPayment(cancel())
        assert raised.refusal.retry_after_s is not None
        asked = pb.GetPaymentRequest(payment_id=paid.payment_id, user_id="ann")
        stored = (await payment.GetPayment(asked)).payment
        assert stored.state == pb.Payment.STATE_CONFIRMED
        assert stored.HasField("cancel_request_time")
        gateway.open.set()
        await asyncio.gather(*first)
        again = await payment.CancelPayment(cancel())
        assert again.payment.state == pb.Payment.STATE_CANCELLED


async def test_an_open_circuit_refuses_before_a_claim_and_then_tries_one(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = 0
    claim = Confirmation.claim

    def counted(*arguments: Any) -> Confirmation:
        nonlocal claims
        claims += 1
        return claim(*arguments)

    async def lost(request: Request) -> Reply:
        return LOST

    breaker = {"gateway_breaker_failures": 1, "gateway_breaker_pause_s": 1.0}
    async with (
        stand_in() as gateway,
        serve(1, cast("Any", gateway), **breaker, **NO_SWEEP) as (payment,),
    ):
        paid, unknown = confirm(key_of(), "paid"), confirm(key_of(), "unknown")
        await payment.ConfirmPayment(paid)
        works, gateway.wire.answer = gateway.wire.answer, lost
        assert await outcome(payment.ConfirmPayment(unknown)) == "PAYMENT_OUTCOME_UNKNOWN"
        monkeypatch.setattr(Confirmation, "claim", counted)
        sent, late = len(gateway.wire.requests), confirm(key_of(), "late")
        with refused("GATEWAY_UNAVAILABLE") as raised:
            await payment.ConfirmPayment(late)
        assert raised.refusal.metadata["circuit"] == "open"
        assert raised.refusal.retry_after_s is not None
        assert (claims, len(gateway.wire.requests)) == (0, sent)
        # What is stored or not known is told as ever: it may be charged.
        assert (await payment.ConfirmPayment(paid)).replayed
        with refused("PAYMENT_KEY_USED"):
            await payment.ConfirmPayment(confirm(paid.payment_key, "other"))
        with refused("PAYMENT_IN_PROGRESS"):
            await payment.ConfirmPayment(confirm(unknown.payment_key, "other"))
        gateway.wire.answer = works

        async def tried() -> Any:
            return await outcome(payment.ConfirmPayment(late))

        # Somebody has to try: the first call after the pause.
        response = await until(tried, lambda got: got != "GATEWAY_UNAVAILABLE")
        assert (response.payment.state, claims) == (pb.Payment.STATE_CONFIRMED, 1)
