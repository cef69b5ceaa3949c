"""The Toss adapter against every kind of response: only an exact one counts as charged."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable
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
    NotCancellable,
    NotFound,
    NotSent,
    Rejected,
    Unknown,
)
from payment_service.gateway.toss import BODY_BYTES_MAX, TossGateway, TossOptions
from payment_service.gateway.toss_responses import DECLINES, TALLY_FAULTS

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

Network = Callable[[httpx.Request], httpx.Response]


def paid(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=PAYMENT | changes)


def given_back(**changes: Any) -> httpx.Response:
    return paid(status="CANCELED", balanceAmount=0, **changes)


def refused(status: int, code: object) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": "…"})


def raw(content: bytes, headers: dict[str, str] = JSON) -> httpx.Response:
    return httpx.Response(200, headers=headers, content=content)


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


def gateway(network: Network, **options: Any) -> TossGateway:
    def on_the_wire(request: httpx.Request) -> httpx.Response:
        made = network(request)
        if not isinstance(made.stream, httpx.ByteStream):
            return made
        body = Wire(b"".join(made.stream))
        return httpx.Response(made.status_code, headers=made.headers, stream=body)

    made = TossOptions(url="http://gateway.test", secret_key=SecretStr(SECRET), **options)
    return TossGateway(made, transport=httpx.MockTransport(on_the_wire))


def returning(*responses: httpx.Response) -> tuple[TossGateway, list[httpx.Request]]:
    """A gateway that returns these responses in turn, and the requests it will have received."""
    requests: list[httpx.Request] = []
    left = list(responses)

    def network(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return left.pop(0)

    return gateway(network), requests


def raising(error: Exception) -> Network:
    def network(request: httpx.Request) -> httpx.Response:
        raise error

    return network


async def outcomes(toss: TossGateway) -> tuple[object, object, object]:
    """The outcomes of confirm, find and cancel; Unknown without its text, which is free."""
    found = (await toss.confirm(CHARGE), await toss.find(CHARGE), await toss.cancel(CHARGE, "no"))
    first, second, third = (Unknown if isinstance(each, Unknown) else each for each in found)
    return first, second, third


# -- requests ------------------------------------------------------------------------------------


async def test_confirm_sends_the_charge_and_the_idempotency_key() -> None:
    toss, requests = returning(paid())
    assert await toss.confirm(CHARGE) == CONFIRMED
    (request,) = requests
    assert (request.method, request.url.path) == ("POST", "/v1/payments/confirm")
    assert json.loads(request.content) == {
        "paymentKey": "key-1",
        "orderId": "order-1",
        "amount": 15_000,
    }
    assert request.headers["idempotency-key"] == "confirmation-1"
    assert request.headers["authorization"] == f"Basic {BASIC}"
    await toss.aclose()


async def test_find_sends_the_payment_key_only() -> None:
    toss, requests = returning(paid())
    assert await toss.find(CHARGE) == CONFIRMED
    assert requests[0].url.path == "/v1/payments/key-1"
    assert "idempotency-key" not in requests[0].headers


@pytest.mark.parametrize(("reason", "sent"), [("r" * 300, "r" * 200), ("", "cancelled")])
async def test_cancel_sends_a_bounded_reason_that_is_not_empty(reason: str, sent: str) -> None:
    toss, requests = returning(given_back())
    assert await toss.cancel(CHARGE, reason) == CANCELLED
    assert requests[0].url.path == "/v1/payments/key-1/cancel"
    assert requests[0].headers["idempotency-key"] == "confirmation-1"
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


# -- responses -----------------------------------------------------------------------------------

WRONG_MONEY: dict[str, list[object]] = {
    "paymentKey": ["key-2", None, 1],
    "orderId": ["order-2", None],
    "currency": ["USD", "krw", None],
    "totalAmount": [14_999, 15_001, -15_000, 15_000.0, "15000", None, True],
    "balanceAmount": [0, 14_999, None, "15000"],
    "lastTransactionKey": ["", None, 7, "a\0b", "x" * 201],
}
NOT_CHARGED: dict[str, tuple[object, object]] = {
    "ABORTED": (Declined("ABORTED"), Declined("ABORTED")),
    "EXPIRED": (Declined("EXPIRED"), Declined("EXPIRED")),
    "READY": (Unknown, NotFound()),
    "IN_PROGRESS": (Unknown, NotFound()),
}
OTHER_STATUSES: list[object] = ["WAITING_FOR_DEPOSIT", "SOMETHING_NEW", None, []]
OF_ANOTHER_ORDER = {"orderId": "order-2", "currency": "USD", "totalAmount": 1}
FAILURES: list[tuple[object, str]] = [
    ({"code": "REJECT_CARD_PAYMENT"}, "REJECT_CARD_PAYMENT"),
    ({"code": "<b>no</b>"}, "UNREADABLE_CODE"),
    ({}, "UNREADABLE_CODE"),
    ("text", "ABORTED"),
]
OUTCOME_OPEN: list[tuple[int, object]] = [
    (400, "PROVIDER_ERROR"),
    (409, "IDEMPOTENT_REQUEST_PROCESSING"),
    (400, "SOMETHING_NEW"),
    (400, "reject_card_payment"),
    (500, "FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING"),
    (503, "REJECT_CARD_PAYMENT"),
    (302, "REJECT_CARD_PAYMENT"),
    (201, "NOT_FOUND_PAYMENT"),
    (500, "NOT_FOUND_PAYMENT"),
    (404, None),
    (404, ["NOT_FOUND_PAYMENT"]),
]
UNREADABLE = {
    "html": httpx.Response(200, html="<h1>hello</h1>"),
    "html 404": httpx.Response(404, html="<h1>not here</h1>"),
    "html 401": httpx.Response(401, html="<h1>log in</h1>"),
    "text": httpx.Response(200, text=json.dumps(PAYMENT)),
    "empty": raw(b""),
    "no content": httpx.Response(204),
    "broken": raw(b'{"status": "DONE"'),
    "not UTF-8": raw(b'{"status": "\xff"}'),
    "list": httpx.Response(200, json=[PAYMENT]),
    "null": raw(b"null"),
    "deep": raw(b"[" * 60_000),
    "digits": raw(b"9" * 60_000),
    "large": httpx.Response(200, json=PAYMENT | {"more": "x" * BODY_BYTES_MAX}),
    "redirect": httpx.Response(302, headers={"location": "http://elsewhere.test/"}),
    "redirect with JSON": httpx.Response(
        307, headers={"location": "http://elsewhere.test/"}, json=PAYMENT
    ),
    "created": httpx.Response(201, json=PAYMENT),
    "gzip": raw(gzip.compress(json.dumps(PAYMENT).encode()), JSON | {"content-encoding": "gzip"}),
    "no code": httpx.Response(404, json={}),
}

Row = tuple[httpx.Response, object, object, object]


def row(response: httpx.Response, *expected: object) -> Row:
    """A response with the outcomes of confirm, find and cancel, or with one for all."""
    confirm, find, cancel = expected if len(expected) == 3 else expected * 3
    return response, confirm, find, cancel


ROWS: dict[str, Row] = {
    "paid": row(paid(), CONFIRMED, CONFIRMED, Unknown),
    "given back": row(given_back(), CANCELLED),
    "partly given back": row(paid(status="PARTIAL_CANCELED"), Mismatch(("balanceAmount",))),
    "not found": row(
        refused(404, "NOT_FOUND_PAYMENT"), Declined("NOT_FOUND_PAYMENT"), NotFound(), NotFound()
    ),
    "not cancellable": row(
        refused(403, "REFUND_REJECTED"), Unknown, Unknown, NotCancellable("REFUND_REJECTED")
    ),
    "unauthorized": row(refused(401, "SOMETHING_NEW"), Rejected("SOMETHING_NEW")),
    "too many requests": row(refused(429, "SOMETHING_NEW"), Rejected("SOMETHING_NEW")),
    **{
        f"{field} {value!r}"[:40]: row(paid(**{field: value}), Mismatch((field,)))
        for field, values in WRONG_MONEY.items()
        for value in values
    },
    **{
        f"{status}, {content}": row(paid(status=status, **changes), confirm, find, Unknown)
        for status, (confirm, find) in NOT_CHARGED.items()
        for content, changes in {"same": {}, "another order": OF_ANOTHER_ORDER}.items()
    },
    **{
        f"{status}, another key": row(
            paid(status=status, paymentKey="key-2"), Mismatch(("paymentKey",))
        )
        for status in NOT_CHARGED
    },
    **{
        f"failure {failure}": row(
            paid(status="ABORTED", failure=failure), Declined(code), Declined(code), Unknown
        )
        for failure, code in FAILURES
    },
    **{f"status {status}": row(paid(status=status), Unknown) for status in OTHER_STATUSES},
    **{f"{status} {code}": row(refused(status, code), Unknown) for status, code in OUTCOME_OPEN},
    **{code: row(refused(403, code), Rejected(code)) for code in sorted(TALLY_FAULTS)},
    **{name: row(response, Unknown) for name, response in UNREADABLE.items()},
}


@pytest.mark.parametrize(("response", "confirm", "find", "cancel"), ROWS.values(), ids=ROWS)
async def test_each_response_has_one_outcome_per_operation(
    response: httpx.Response, confirm: object, find: object, cancel: object
) -> None:
    toss, requests = returning(response, response, response)
    assert await outcomes(toss) == (confirm, find, cancel)
    assert {request.url.host for request in requests} == {"gateway.test"}


@pytest.mark.parametrize("code", sorted(DECLINES))
async def test_a_decline_counts_with_a_4xx_only(code: str) -> None:
    toss, _ = returning(refused(400, code), refused(403, code), refused(500, code))
    assert await toss.confirm(CHARGE) == Declined(code)
    assert await toss.confirm(CHARGE) == Declined(code)
    assert isinstance(await toss.confirm(CHARGE), Unknown)


@pytest.mark.parametrize(
    ("found", "confirm", "cancel"),
    [
        (paid(), CONFIRMED, Unknown),
        (given_back(), CANCELLED, CANCELLED),
        (given_back(totalAmount=1), Mismatch(("totalAmount",)), Mismatch(("totalAmount",))),
        (paid(orderId="of-another"), Mismatch(("orderId",)), Mismatch(("orderId",))),
        (paid(status="ABORTED"), Declined("ABORTED"), NotCancellable("ABORTED")),
        (refused(404, "NOT_FOUND_PAYMENT"), Unknown, Unknown),
        (refused(401, "UNAUTHORIZED_KEY"), Unknown, Unknown),
        (refused(500, "UNKNOWN_PAYMENT_ERROR"), Unknown, Unknown),
        # Not NotSent: that would free a payment key that may have been charged.
        (httpx.ConnectError("refused"), Unknown, Unknown),
    ],
    ids=str,
)
async def test_an_already_processed_payment_is_looked_up(
    found: httpx.Response | Exception, confirm: object, cancel: object
) -> None:
    def network(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            if isinstance(found, Exception):
                raise found
            return found
        cancels = request.url.path.endswith("/cancel")
        code = "ALREADY_CANCELED_PAYMENT" if cancels else "ALREADY_PROCESSED_PAYMENT"
        return refused(400, code)

    confirmed, _, cancelled = await outcomes(gateway(network))
    assert (confirmed, cancelled) == (confirm, cancel)


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    body = Wire(b" " * 4096, endless=True)
    toss = gateway(lambda _: httpx.Response(200, headers=JSON, stream=body))
    assert isinstance(await toss.confirm(CHARGE), Unknown)
    assert body.sent <= BODY_BYTES_MAX + 4096


async def test_the_whole_exchange_has_one_time_limit() -> None:
    body = Wire(b"", endless=True, pause_s=0.001)
    toss = gateway(lambda _: httpx.Response(200, headers=JSON, stream=body), timeout_s=0.05)
    assert await toss.confirm(CHARGE) == Unknown("TimeoutError")


async def test_no_cookie_is_kept() -> None:
    first = httpx.Response(200, json=PAYMENT, headers={"set-cookie": "a=b"})
    toss, requests = returning(first, paid())
    await toss.confirm(CHARGE)
    await toss.find(CHARGE)
    assert "cookie" not in requests[1].headers


# -- failures of the network ---------------------------------------------------------------------


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
async def test_a_call_without_a_connection_is_not_sent(error: type[Exception]) -> None:
    not_sent = NotSent(error.__name__)
    assert await outcomes(gateway(raising(error("…")))) == (not_sent,) * 3


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.ReadError,
        httpx.WriteError,
        httpx.RemoteProtocolError,
        httpx.LocalProtocolError,
    ],
)
async def test_a_call_that_may_have_arrived_is_unknown(error: type[Exception]) -> None:
    assert await gateway(raising(error("…"))).confirm(CHARGE) == Unknown(error.__name__)


@pytest.mark.parametrize(
    ("response", "opens"),
    [
        (None, True),
        (httpx.Response(200, html="<h1>"), True),
        (refused(500, "UNKNOWN_PAYMENT_ERROR"), True),
        (refused(403, "REJECT_CARD_PAYMENT"), False),
        (refused(400, "PROVIDER_ERROR"), False),
        (paid(totalAmount=1), False),
    ],
    ids=["no response", "html", "500", "declined", "provider error", "other money"],
)
async def test_failures_open_the_circuit_of_one_operation(
    response: httpx.Response | None, opens: bool
) -> None:
    calls = 0

    def network(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        if request.method == "GET":
            return paid()
        calls += 1
        if response is None:
            raise httpx.ReadTimeout("slow")
        return response

    toss = gateway(network, breaker_failures=3, breaker_pause_s=60)
    last = [await toss.confirm(CHARGE) for _ in range(5)][-1]
    assert (last == NotSent("circuit open")) is opens
    assert calls == (3 if opens else 5)
    # Failing confirms do not stop the look-ups that resolve them.
    assert await toss.find(CHARGE) == CONFIRMED


async def test_the_secret_key_appears_in_no_log_and_no_repr(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = TossOptions("http://gateway.test", SecretStr(SECRET))
    with caplog.at_level(logging.DEBUG):
        toss, _ = returning(paid(), refused(401, "UNAUTHORIZED_KEY"), refused(500, "X"))
        seen = [await toss.confirm(CHARGE) for _ in range(3)]
    shown = f"{options!r} {options} {toss!r} {vars(toss)} {seen!r} {caplog.text}"
    assert SECRET not in shown
    assert BASIC not in shown
