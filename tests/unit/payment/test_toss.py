"""What the Toss adapter sends, the limits of an exchange, and its circuit breaker."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from common.money import Money
from payment_service.gateway.exchange import BODY_BYTES_MAX
from payment_service.gateway.outcomes import (
    Cancelled,
    Charge,
    Confirmed,
    Declined,
    Mismatch,
    NotFound,
    NotSent,
    Unknown,
)
from payment_service.gateway.toss import TossGateway, TossOptions
from tests.support.gateway_wire import (
    JSON_TYPE,
    LOST,
    TRICKLE,
    GatewayWire,
    Reply,
    gateway_wire,
    in_turn,
    reply,
)

SECRET = "test_sk_canary"
BASIC = base64.b64encode(f"{SECRET}:".encode()).decode()
CHARGE = Charge("key-1", "order-1", Money("KRW", 15_000), "confirmation-1")
PAYMENT: dict[str, Any] = {
    "paymentKey": "key-1",
    "orderId": "order-1",
    "status": "DONE",
    "currency": "KRW",
    "totalAmount": 15_000,
    "balanceAmount": 15_000,
    "lastTransactionKey": "transaction-1",
    "failure": None,
}
CONFIRMED = Confirmed("transaction-1", CHARGE.amount)
CANCELLED = Cancelled("transaction-1", CHARGE.amount)


def paid(**changes: Any) -> Reply:
    return reply(200, PAYMENT | changes)


def given_back(**changes: Any) -> Reply:
    return paid(status="CANCELED", balanceAmount=0, **changes)


def refused(status: int, code: object) -> Reply:
    return reply(status, {"code": code, "message": "…"})


@asynccontextmanager
async def returning(
    *replies: Reply, **options: Any
) -> AsyncIterator[tuple[TossGateway, GatewayWire]]:
    """The adapter of a gateway that returns these replies in turn."""
    async with gateway_wire(in_turn(*replies)) as wire:
        toss = TossGateway(TossOptions(wire.url, SecretStr(SECRET), **options))
        try:
            yield toss, wire
        finally:
            await toss.aclose()


async def outcomes(toss: TossGateway) -> tuple[object, object, object]:
    """The outcomes of confirm, find and cancel; Unknown without its text, which is free."""
    found = (await toss.confirm(CHARGE), await toss.find(CHARGE), await toss.cancel(CHARGE, "no"))
    first, second, third = (Unknown if isinstance(each, Unknown) else each for each in found)
    return first, second, third


async def test_each_operation_sends_its_own_request() -> None:
    async with returning(paid(), paid(), given_back()) as (toss, wire):
        assert await outcomes(toss) == (CONFIRMED, CONFIRMED, CANCELLED)
    assert [(request.method, request.target) for request in wire.requests] == [
        ("POST", "/v1/payments/confirm"),
        ("GET", "/v1/payments/key-1"),
        ("POST", "/v1/payments/key-1/cancel"),
    ]
    confirm, _, cancel = wire.requests
    assert confirm.json == {"paymentKey": "key-1", "orderId": "order-1", "amount": 15_000}
    assert cancel.json == {"cancelReason": "no"}
    headers = [request.headers for request in wire.requests]
    keys = [each.get("idempotency-key") for each in headers]
    assert keys == ["confirmation-1", None, "confirmation-1"]
    assert {each["authorization"] for each in headers} == {f"Basic {BASIC}"}
    assert {each["accept-encoding"] for each in headers} == {"identity"}


@pytest.mark.parametrize(("balance", "done"), [(600, True), (0, True), (15_000, False)])
async def test_a_part_is_given_back_by_its_amount(balance: int, done: bool) -> None:
    status = {0: "CANCELED", 15_000: "DONE"}.get(balance, "PARTIAL_CANCELED")
    async with returning(paid(status=status, balanceAmount=balance)) as (toss, wire):
        found = await toss.cancel(CHARGE, "no", Money("KRW", 14_400))
    assert isinstance(found, Cancelled) is done
    assert wire.requests[0].json == {"cancelReason": "no", "cancelAmount": 14_400}


@pytest.mark.parametrize(("reason", "sent"), [("r" * 300, "r" * 200), ("", "cancelled")])
async def test_cancel_sends_a_bounded_reason_that_is_not_empty(reason: str, sent: str) -> None:
    async with returning(given_back()) as (toss, wire):
        assert await toss.cancel(CHARGE, reason) == CANCELLED
    assert wire.requests[0].json == {"cancelReason": sent}


async def test_another_currency_is_sent_and_checked() -> None:
    charge = Charge("key-1", "order-1", Money("USD", 15_000), "confirmation-1")
    async with returning(paid(currency="USD"), paid()) as (toss, wire):
        assert await toss.confirm(charge) == Confirmed("transaction-1", charge.amount)
        assert wire.requests[0].json["currency"] == "USD"
        assert await toss.confirm(charge) == Mismatch(("currency",))


async def test_a_payment_key_cannot_change_the_path() -> None:
    charge = Charge("a:b@c/../d?e#f", "order-1", CHARGE.amount, "confirmation-1")
    async with returning(refused(404, "NOT_FOUND_PAYMENT")) as (toss, wire):
        await toss.find(charge)
    assert wire.requests[0].target == "/v1/payments/a%3Ab%40c%2F..%2Fd%3Fe%23f"


@pytest.mark.parametrize("payment_key", [".", ".."])
async def test_a_key_that_no_path_can_carry_is_not_charged(payment_key: str) -> None:
    charge = Charge(payment_key, "order-1", CHARGE.amount, "confirmation-1")
    async with returning() as (toss, wire):
        assert await toss.confirm(charge) == Declined("INVALID_PAYMENT_KEY")
        assert await toss.find(charge) == NotFound()
        assert await toss.cancel(charge, "reason") == NotFound()
    assert wire.requests == []


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    async with returning(TRICKLE) as (toss, wire):
        assert isinstance(await toss.confirm(CHARGE), Unknown)
        await wire.until_open(0)
        # What the sockets hold comes on top of what was read.
        assert wire.bytes_sent < 100 * BODY_BYTES_MAX


async def test_the_whole_exchange_has_one_time_limit() -> None:
    async with returning(TRICKLE, timeout_s=1.0) as (toss, wire):
        wire.pause_s = 0.3
        assert await toss.confirm(CHARGE) == Unknown("TimeoutError")
        await wire.until_open(0)


async def test_no_cookie_is_kept() -> None:
    first = reply(200, PAYMENT, JSON_TYPE | {"set-cookie": "a=b"})
    async with returning(first, paid()) as (toss, wire):
        await toss.confirm(CHARGE)
        await toss.find(CHARGE)
    assert "cookie" not in wire.requests[1].headers


@pytest.mark.parametrize(
    ("returned", "opens"),
    [
        (LOST, True),
        (reply(200, content=b"<h1>", headers={"content-type": "text/html"}), True),
        (refused(500, "UNKNOWN_PAYMENT_ERROR"), True),
        (refused(403, "REJECT_CARD_PAYMENT"), False),
        (refused(400, "PROVIDER_ERROR"), False),
        (paid(totalAmount=1), False),
    ],
    ids=["no response", "html", "500", "declined", "provider error", "other money"],
)
async def test_failures_open_the_circuit_of_one_operation(returned: Reply, opens: bool) -> None:
    sent = 3 if opens else 5
    limits = {"breaker_failures": 3, "breaker_pause_s": 60}
    async with returning(*[returned] * sent, paid(), **limits) as (toss, wire):
        last = [await toss.confirm(CHARGE) for _ in range(5)][-1]
        assert (last == NotSent("circuit open", circuit_open=True)) is opens
        assert toss.refuses_confirms is opens
        assert len(wire.requests) == sent
        # Failing confirms do not stop the look-ups that resolve them.
        assert await toss.find(CHARGE) == CONFIRMED


async def test_the_secret_key_appears_in_no_repr() -> None:
    options = TossOptions("http://gateway.test", SecretStr(SECRET))
    replies = paid(), refused(401, "UNAUTHORIZED_KEY"), refused(500, "X")
    async with returning(*replies) as (toss, _):
        seen = [await toss.confirm(CHARGE) for _ in replies]
        shown = f"{options!r} {options} {toss!r} {vars(toss)} {vars(toss._exchanges)} {seen!r}"
    assert SECRET not in shown
    assert BASIC not in shown
