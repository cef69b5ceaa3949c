"""What the Toss adapter sends, the limits of an exchange, and its circuit breaker."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from common.money import Money
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
from payment_service.gateway.toss import BODY_BYTES_MAX, TossGateway, TossOptions

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
JSON = {"content-type": "application/json"}


def paid(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=PAYMENT | changes)


def given_back(**changes: Any) -> httpx.Response:
    return paid(status="CANCELED", balanceAmount=0, **changes)


def refused(status: int, code: object) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": "…"})


class Wire(httpx.AsyncByteStream):
    """A body in chunks, as the network brings it; httpx.Response(json=…) has read its own."""

    def __init__(self, body: bytes, *, endless: bool = False, pause_s: float = 0.0) -> None:
        self.body, self.endless, self.pause_s = body, endless, pause_s
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < len(self.body) or self.endless:
            await asyncio.sleep(self.pause_s)
            chunk = self.body if self.endless else self.body[self.sent : self.sent + 4096]
            self.sent += len(chunk)
            yield chunk


def returning(
    *replies: httpx.Response | Exception, **options: Any
) -> tuple[TossGateway, list[httpx.Request]]:
    """A gateway that gets these replies in turn, and the requests that it will have sent."""
    requests: list[httpx.Request] = []

    def on_the_wire(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        reply = replies[len(requests) - 1]
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply.stream, httpx.ByteStream):
            return reply
        body = Wire(b"".join(reply.stream))
        return httpx.Response(reply.status_code, headers=reply.headers, stream=body)

    made = TossOptions(url="http://gateway.test", secret_key=SecretStr(SECRET), **options)
    return TossGateway(made, transport=httpx.MockTransport(on_the_wire)), requests


async def outcomes(toss: TossGateway) -> tuple[object, object, object]:
    """The outcomes of confirm, find and cancel; Unknown without its text, which is free."""
    found = (await toss.confirm(CHARGE), await toss.find(CHARGE), await toss.cancel(CHARGE, "no"))
    first, second, third = (Unknown if isinstance(each, Unknown) else each for each in found)
    return first, second, third


async def test_each_operation_sends_its_own_request() -> None:
    toss, requests = returning(paid(), paid(), given_back())
    assert await outcomes(toss) == (CONFIRMED, CONFIRMED, CANCELLED)
    assert [(request.method, request.url.path) for request in requests] == [
        ("POST", "/v1/payments/confirm"),
        ("GET", "/v1/payments/key-1"),
        ("POST", "/v1/payments/key-1/cancel"),
    ]
    confirm, _, cancel = requests
    content = {"paymentKey": "key-1", "orderId": "order-1", "amount": 15_000}
    assert json.loads(confirm.content) == content
    assert json.loads(cancel.content) == {"cancelReason": "no"}
    keys = [request.headers.get("idempotency-key") for request in requests]
    assert keys == ["confirmation-1", None, "confirmation-1"]
    assert {request.headers["authorization"] for request in requests} == {f"Basic {BASIC}"}
    await toss.aclose()


@pytest.mark.parametrize(("balance", "done"), [(600, True), (0, True), (15_000, False)])
async def test_a_part_is_given_back_by_its_amount(balance: int, done: bool) -> None:
    status = {0: "CANCELED", 15_000: "DONE"}.get(balance, "PARTIAL_CANCELED")
    toss, requests = returning(paid(status=status, balanceAmount=balance))
    found = await toss.cancel(CHARGE, "no", Money("KRW", 14_400))
    assert isinstance(found, Cancelled) is done
    assert json.loads(requests[0].content) == {"cancelReason": "no", "cancelAmount": 14_400}


@pytest.mark.parametrize(("reason", "sent"), [("r" * 300, "r" * 200), ("", "cancelled")])
async def test_cancel_sends_a_bounded_reason_that_is_not_empty(reason: str, sent: str) -> None:
    toss, requests = returning(given_back())
    assert await toss.cancel(CHARGE, reason) == CANCELLED
    assert json.loads(requests[0].content) == {"cancelReason": sent}


async def test_another_currency_is_sent_and_checked() -> None:
    charge = Charge("key-1", "order-1", Money("USD", 15_000), "confirmation-1")
    toss, requests = returning(paid(currency="USD"), paid())
    assert await toss.confirm(charge) == Confirmed("transaction-1", charge.amount)
    assert json.loads(requests[0].content)["currency"] == "USD"
    assert await toss.confirm(charge) == Mismatch(("currency",))


async def test_a_payment_key_cannot_change_the_path() -> None:
    charge = Charge("a:b@c/../d?e#f", "order-1", CHARGE.amount, "confirmation-1")
    toss, requests = returning(refused(404, "NOT_FOUND_PAYMENT"))
    await toss.find(charge)
    assert requests[0].url.raw_path == b"/v1/payments/a%3Ab%40c%2F..%2Fd%3Fe%23f"


@pytest.mark.parametrize("payment_key", [".", ".."])
async def test_a_key_that_no_path_can_carry_is_not_charged(payment_key: str) -> None:
    charge = Charge(payment_key, "order-1", CHARGE.amount, "confirmation-1")
    toss, requests = returning()
    assert await toss.confirm(charge) == Declined("INVALID_PAYMENT_KEY")
    assert await toss.find(charge) == NotFound()
    assert await toss.cancel(charge, "reason") == NotFound()
    assert requests == []


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    body = Wire(b" " * 4096, endless=True)
    toss, _ = returning(httpx.Response(200, headers=JSON, stream=body))
    assert isinstance(await toss.confirm(CHARGE), Unknown)
    assert body.sent <= BODY_BYTES_MAX + 4096


async def test_the_whole_exchange_has_one_time_limit() -> None:
    body = Wire(b"", endless=True, pause_s=0.001)
    toss, _ = returning(httpx.Response(200, headers=JSON, stream=body), timeout_s=0.05)
    assert await toss.confirm(CHARGE) == Unknown("TimeoutError")


async def test_no_cookie_is_kept() -> None:
    first = httpx.Response(200, json=PAYMENT, headers={"set-cookie": "a=b"})
    toss, requests = returning(first, paid())
    await toss.confirm(CHARGE)
    await toss.find(CHARGE)
    assert "cookie" not in requests[1].headers


@pytest.mark.parametrize(
    ("reply", "opens"),
    [
        (httpx.ReadTimeout("slow"), True),
        (httpx.Response(200, html="<h1>"), True),
        (refused(500, "UNKNOWN_PAYMENT_ERROR"), True),
        (refused(403, "REJECT_CARD_PAYMENT"), False),
        (refused(400, "PROVIDER_ERROR"), False),
        (paid(totalAmount=1), False),
    ],
    ids=["no response", "html", "500", "declined", "provider error", "other money"],
)
async def test_failures_open_the_circuit_of_one_operation(
    reply: httpx.Response | Exception, opens: bool
) -> None:
    sent = 3 if opens else 5
    toss, requests = returning(*[reply] * sent, paid(), breaker_failures=3, breaker_pause_s=60)
    last = [await toss.confirm(CHARGE) for _ in range(5)][-1]
    assert (last == NotSent("circuit open")) is opens
    assert len(requests) == sent
    # Failing confirms do not stop the look-ups that resolve them.
    assert await toss.find(CHARGE) == CONFIRMED


async def test_the_secret_key_appears_in_no_repr() -> None:
    options = TossOptions("http://gateway.test", SecretStr(SECRET))
    toss, _ = returning(paid(), refused(401, "UNAUTHORIZED_KEY"), refused(500, "X"))
    seen = [await toss.confirm(CHARGE) for _ in range(3)]
    shown = f"{options!r} {options} {toss!r} {vars(toss)} {seen!r}"
    assert SECRET not in shown
    assert BASIC not in shown
