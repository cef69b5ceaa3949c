"""The Toss adapter against every kind of answer: only an exact one counts as charged."""

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
from payment_service.gateway import (
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
from payment_service.toss import BODY_BYTES_MAX, TossGateway, TossOptions
from payment_service.toss_answers import DECLINES, OUR_FAULTS

SECRET = "test_sk_canary"
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

Handler = Callable[[httpx.Request], httpx.Response]


def paid(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=PAYMENT | changes)


def given_back(**changes: Any) -> httpx.Response:
    return paid(status="CANCELED", balanceAmount=0, **changes)


def refused(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": "…"})


class _Wire(httpx.AsyncByteStream):
    """A body as the network brings it; httpx.Response(json=…) has read its own already."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 4096):
            yield self.body[start : start + 4096]


def gateway(handler: Handler, **options: Any) -> TossGateway:
    def on_the_wire(request: httpx.Request) -> httpx.Response:
        made = handler(request)
        if not isinstance(made.stream, httpx.ByteStream):
            return made
        body = _Wire(b"".join(made.stream))
        return httpx.Response(made.status_code, headers=made.headers, stream=body)

    made = TossOptions(url="http://gateway.test", secret_key=SecretStr(SECRET), **options)
    return TossGateway(made, transport=httpx.MockTransport(on_the_wire))


def answering(*answers: httpx.Response) -> tuple[TossGateway, list[httpx.Request]]:
    """Return a gateway that gives these answers in turn, and the requests it will have seen."""
    requests: list[httpx.Request] = []
    left = list(answers)

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return left.pop(0)

    return gateway(handler), requests


def raising(error: Exception) -> TossGateway:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    return gateway(handler)


async def test_confirm_speaks_the_protocol() -> None:
    toss, requests = answering(paid())
    assert await toss.confirm(CHARGE) == CONFIRMED
    (request,) = requests
    assert (request.method, request.url.path) == ("POST", "/v1/payments/confirm")
    assert json.loads(request.content) == {
        "paymentKey": "key-1",
        "orderId": "order-1",
        "amount": 15_000,
    }
    assert request.headers["idempotency-key"] == "confirmation-1"
    expected = base64.b64encode(f"{SECRET}:".encode()).decode()
    assert request.headers["authorization"] == f"Basic {expected}"
    await toss.aclose()


async def test_another_currency_is_named_and_checked() -> None:
    charge = Charge("key-1", "order-1", Money("USD", 15_000), "confirmation-1")
    toss, requests = answering(paid(currency="USD"), paid())
    assert await toss.confirm(charge) == Confirmed("transaction-1", charge.amount)
    assert json.loads(requests[0].content)["currency"] == "USD"
    assert await toss.confirm(charge) == Mismatch(("currency",))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("paymentKey", ["key-2", None, 1]),
        ("orderId", ["order-2", None]),
        ("currency", ["USD", "krw", None]),
        ("totalAmount", [14_999, 15_001, -15_000, 15_000.0, "15000", None, True]),
        ("balanceAmount", [0, 14_999, None, "15000"]),
        ("lastTransactionKey", ["", None, 7, "a\0b", "x" * 201]),
    ],
)
async def test_other_money_is_never_confirmed(field: str, wrong: list[Any]) -> None:
    for value in wrong:
        toss, _ = answering(paid(**{field: value}), paid(**{field: value}))
        assert await toss.confirm(CHARGE) == Mismatch((field,)), value
        assert await toss.find(CHARGE) == Mismatch((field,)), value


@pytest.mark.parametrize(
    ("status", "confirmed", "found"),
    [
        ("ABORTED", Declined("ABORTED"), Declined("ABORTED")),
        ("EXPIRED", Declined("EXPIRED"), Declined("EXPIRED")),
        ("READY", None, NotFound()),
        ("IN_PROGRESS", None, NotFound()),
        ("WAITING_FOR_DEPOSIT", None, None),
        ("PARTIAL_CANCELED", Mismatch(("balanceAmount",)), Mismatch(("balanceAmount",))),
        ("SOMETHING_NEW", None, None),
        (None, None, None),
        ([], None, None),
    ],
)
async def test_every_other_status(status: Any, confirmed: object, found: object) -> None:
    """None stands for Unknown, whose wording is free."""
    toss, _ = answering(paid(status=status), paid(status=status))
    for outcome, expected in [
        (await toss.confirm(CHARGE), confirmed),
        (await toss.find(CHARGE), found),
    ]:
        if expected is None:
            assert isinstance(outcome, Unknown)
        else:
            assert outcome == expected


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("ABORTED", Declined("ABORTED")),
        ("EXPIRED", Declined("EXPIRED")),
        ("READY", NotFound()),
        ("IN_PROGRESS", NotFound()),
    ],
)
async def test_what_took_no_money_is_only_compared_by_its_key(status: str, found: object) -> None:
    other = {"status": status, "orderId": "order-2", "currency": "USD", "totalAmount": 1}
    toss, _ = answering(paid(**other), paid(**other, paymentKey="key-2"))
    assert await toss.find(CHARGE) == found
    assert await toss.find(CHARGE) == Mismatch(("paymentKey",))


async def test_the_reason_of_an_aborted_payment_is_told() -> None:
    failures = [{"code": "REJECT_CARD_PAYMENT"}, {"code": "<b>no</b>"}, {}, "text"]
    toss, _ = answering(*(paid(status="ABORTED", failure=failure) for failure in failures))
    outcomes = [await toss.find(CHARGE) for _ in failures]
    assert outcomes == [
        Declined("REJECT_CARD_PAYMENT"),
        Declined("UNREADABLE_CODE"),
        Declined("UNREADABLE_CODE"),
        Declined("ABORTED"),
    ]


@pytest.mark.parametrize("code", sorted(DECLINES))
async def test_declines(code: str) -> None:
    toss, _ = answering(refused(400, code), refused(403, code), refused(500, code))
    assert await toss.confirm(CHARGE) == Declined(code)
    assert await toss.confirm(CHARGE) == Declined(code)
    assert isinstance(await toss.confirm(CHARGE), Unknown)


@pytest.mark.parametrize("code", sorted(OUR_FAULTS))
async def test_our_own_faults_are_not_the_customers(code: str) -> None:
    toss, _ = answering(*(refused(403, code) for _ in range(3)))
    assert await toss.confirm(CHARGE) == Rejected(code)
    assert await toss.find(CHARGE) == Rejected(code)
    assert await toss.cancel(CHARGE, "reason") == Rejected(code)


@pytest.mark.parametrize("status", [401, 429])
async def test_turned_away_at_the_door(status: int) -> None:
    toss, _ = answering(refused(status, "SOMETHING_NEW"))
    assert await toss.confirm(CHARGE) == Rejected("SOMETHING_NEW")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "PROVIDER_ERROR"),
        (409, "IDEMPOTENT_REQUEST_PROCESSING"),
        (400, "SOMETHING_NEW"),
        (400, "reject_card_payment"),
        (500, "FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING"),
        (503, "REJECT_CARD_PAYMENT"),
        (302, "REJECT_CARD_PAYMENT"),
        (201, "NOT_FOUND_PAYMENT"),
    ],
)
async def test_what_leaves_the_outcome_open(status: int, code: str) -> None:
    toss, _ = answering(*(refused(status, code) for _ in range(3)))
    assert isinstance(await toss.confirm(CHARGE), Unknown)
    assert isinstance(await toss.find(CHARGE), Unknown)
    assert isinstance(await toss.cancel(CHARGE, "reason"), Unknown)


class _Endless(httpx.AsyncByteStream):
    def __init__(self) -> None:
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.sent += 4096
            yield b" " * 4096


JSON = {"content-type": "application/json"}
GARBAGE: dict[str, Callable[[], httpx.Response]] = {
    "html": lambda: httpx.Response(200, html="<h1>hello</h1>"),
    "html_404": lambda: httpx.Response(404, html="<h1>not here</h1>"),
    "html_401": lambda: httpx.Response(401, html="<h1>log in</h1>"),
    "json_named_text": lambda: httpx.Response(200, text=json.dumps(PAYMENT)),
    "empty": lambda: httpx.Response(200, headers=JSON),
    "nothing": lambda: httpx.Response(204),
    "broken": lambda: httpx.Response(200, headers=JSON, content=b'{"status": "DONE"'),
    "not_utf8": lambda: httpx.Response(200, headers=JSON, content=b'{"status": "\xff"}'),
    "list": lambda: httpx.Response(200, json=[PAYMENT]),
    "null": lambda: httpx.Response(200, headers=JSON, content=b"null"),
    "deep": lambda: httpx.Response(200, headers=JSON, content=b"[" * 60_000),
    "digits": lambda: httpx.Response(200, headers=JSON, content=b"9" * 60_000),
    "large": lambda: httpx.Response(200, json=PAYMENT | {"more": "x" * BODY_BYTES_MAX}),
    "redirect": lambda: httpx.Response(302, headers={"location": "http://elsewhere.test/"}),
    "redirect_json": lambda: httpx.Response(
        307, headers={"location": "http://elsewhere.test/"}, json=PAYMENT
    ),
    "created": lambda: httpx.Response(201, json=PAYMENT),
    "gzip": lambda: httpx.Response(
        200,
        headers=JSON | {"content-encoding": "gzip"},
        content=gzip.compress(json.dumps(PAYMENT).encode()),
    ),
    "no_code": lambda: httpx.Response(404, json={}),
    "code_is_no_text": lambda: httpx.Response(404, json={"code": ["NOT_FOUND_PAYMENT"]}),
    "not_found_200": lambda: httpx.Response(500, json={"code": "NOT_FOUND_PAYMENT"}),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_tells_nothing(kind: str) -> None:
    toss, requests = answering(*(GARBAGE[kind]() for _ in range(3)))
    assert isinstance(await toss.confirm(CHARGE), Unknown)
    assert isinstance(await toss.find(CHARGE), Unknown)
    assert isinstance(await toss.cancel(CHARGE, "reason"), Unknown)
    assert {request.url.host for request in requests} == {"gateway.test"}


async def test_an_endless_body_is_left_early() -> None:
    body = _Endless()
    toss, _ = answering(httpx.Response(200, headers=JSON, stream=body))
    assert isinstance(await toss.confirm(CHARGE), Unknown)
    assert body.sent <= BODY_BYTES_MAX + 4096


async def test_no_cookie_is_kept() -> None:
    toss, requests = answering(
        httpx.Response(200, json=PAYMENT, headers={"set-cookie": "a=b"}), paid()
    )
    await toss.confirm(CHARGE)
    await toss.find(CHARGE)
    assert "cookie" not in requests[1].headers


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("full")],
)
async def test_what_never_left(error: Exception) -> None:
    toss = raising(error)
    assert await toss.confirm(CHARGE) == NotSent(type(error).__name__)
    assert await toss.find(CHARGE) == NotSent(type(error).__name__)
    assert await toss.cancel(CHARGE, "reason") == NotSent(type(error).__name__)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("slow"),
        httpx.WriteTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.LocalProtocolError("odd"),
    ],
)
async def test_what_may_have_arrived(error: Exception) -> None:
    assert await raising(error).confirm(CHARGE) == Unknown(type(error).__name__)


async def test_the_whole_exchange_has_one_time_limit() -> None:
    class Trickle(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.001)
                yield b""

    toss = gateway(lambda _: httpx.Response(200, headers=JSON, stream=Trickle()), timeout_s=0.05)
    assert await toss.confirm(CHARGE) == Unknown("TimeoutError")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (paid(), CONFIRMED),
        (given_back(), CANCELLED),
        (paid(status="ABORTED"), Declined("ABORTED")),
        (paid(orderId="of-somebody-else"), Mismatch(("orderId",))),
        (refused(404, "NOT_FOUND_PAYMENT"), None),
        (refused(401, "UNAUTHORIZED_KEY"), None),
        (refused(500, "UNKNOWN_PAYMENT_ERROR"), None),
    ],
)
async def test_already_processed_is_looked_up(found: httpx.Response, expected: object) -> None:
    toss, requests = answering(refused(400, "ALREADY_PROCESSED_PAYMENT"), found)
    outcome = await toss.confirm(CHARGE)
    assert [request.method for request in requests] == ["POST", "GET"]
    if expected is None:
        assert isinstance(outcome, Unknown)
    else:
        assert outcome == expected


async def test_already_processed_stays_open_when_the_look_up_cannot_leave() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            raise httpx.ConnectError("refused")
        return refused(400, "ALREADY_PROCESSED_PAYMENT")

    # Not NotSent: that would free a payment key that may have been charged.
    assert isinstance(await gateway(handler).confirm(CHARGE), Unknown)


async def test_find() -> None:
    toss, requests = answering(paid(), given_back(), refused(404, "NOT_FOUND_PAYMENT"))
    assert await toss.find(CHARGE) == CONFIRMED
    assert await toss.find(CHARGE) == CANCELLED
    assert await toss.find(CHARGE) == NotFound()
    assert requests[0].url.path == "/v1/payments/key-1"
    assert "idempotency-key" not in requests[0].headers


async def test_a_payment_key_cannot_lead_elsewhere() -> None:
    charge = Charge("a:b@c/../d?e#f", "order-1", CHARGE.amount, "confirmation-1")
    toss, requests = answering(refused(404, "NOT_FOUND_PAYMENT"))
    await toss.find(charge)
    assert requests[0].url.raw_path == b"/v1/payments/a%3Ab%40c%2F..%2Fd%3Fe%23f"


@pytest.mark.parametrize("payment_key", [".", ".."])
async def test_a_key_that_no_path_can_carry_is_not_charged(payment_key: str) -> None:
    charge = Charge(payment_key, "order-1", CHARGE.amount, "confirmation-1")
    toss, requests = answering()
    assert await toss.confirm(charge) == Declined("INVALID_PAYMENT_KEY")
    assert await toss.find(charge) == NotFound()
    assert await toss.cancel(charge, "reason") == NotFound()
    assert requests == []


async def test_cancel() -> None:
    toss, requests = answering(
        given_back(),
        refused(404, "NOT_FOUND_PAYMENT"),
        refused(403, "NOT_CANCELABLE_PAYMENT"),
        paid(),
        given_back(totalAmount=1),
    )
    assert await toss.cancel(CHARGE, "r" * 300) == CANCELLED
    assert await toss.cancel(CHARGE, "") == NotFound()
    assert await toss.cancel(CHARGE, "reason") == NotCancellable("NOT_CANCELABLE_PAYMENT")
    assert isinstance(await toss.cancel(CHARGE, "reason"), Unknown)
    assert await toss.cancel(CHARGE, "reason") == Mismatch(("totalAmount",))

    assert requests[0].url.path == "/v1/payments/key-1/cancel"
    assert requests[0].headers["idempotency-key"] == "confirmation-1"
    assert json.loads(requests[0].content) == {"cancelReason": "r" * 200}
    assert json.loads(requests[1].content)["cancelReason"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (given_back(), CANCELLED),
        (given_back(totalAmount=1), Mismatch(("totalAmount",))),
        (paid(status="ABORTED"), NotCancellable("ABORTED")),
        (paid(), None),
        (refused(404, "NOT_FOUND_PAYMENT"), None),
    ],
)
async def test_already_cancelled_is_looked_up(found: httpx.Response, expected: object) -> None:
    toss, _ = answering(refused(400, "ALREADY_CANCELED_PAYMENT"), found)
    outcome = await toss.cancel(CHARGE, "reason")
    if expected is None:
        assert isinstance(outcome, Unknown)
    else:
        assert outcome == expected


class Flaky:
    """A network that fails until told otherwise, and counts the calls that reach it."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: Callable[[], httpx.Response] | Exception = httpx.ReadTimeout("slow")

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer()


async def test_the_breaker_opens_after_failures_in_a_row_and_recovers() -> None:
    network = Flaky()
    toss = gateway(network, breaker_threshold=3, breaker_ttl_s=0.05)
    for _ in range(3):
        assert await toss.confirm(CHARGE) == Unknown("ReadTimeout")
    for _ in range(5):
        assert await toss.confirm(CHARGE) == NotSent("circuit open")
    assert network.calls == 3

    network.answer = paid
    async with asyncio.timeout(10):
        while await toss.confirm(CHARGE) != CONFIRMED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await toss.confirm(CHARGE) == CONFIRMED


@pytest.mark.parametrize("well", [True, False])
async def test_a_half_open_circuit_is_tried_by_one_call(well: bool) -> None:
    reached: asyncio.Queue[httpx.Request] = asyncio.Queue()
    answering = asyncio.Event()
    ill = True

    async def network(request: httpx.Request) -> httpx.Response:
        if ill:
            raise httpx.ReadTimeout("slow")
        reached.put_nowait(request)
        await answering.wait()
        if not well:
            raise httpx.ReadTimeout("slow")
        body = _Wire(json.dumps(PAYMENT).encode())
        return httpx.Response(200, headers=JSON, stream=body)

    # Less than nothing: an opened circuit is tried by the very next call, whatever the clock says.
    options = TossOptions(
        "http://gateway.test", SecretStr(SECRET), breaker_threshold=1, breaker_ttl_s=-1.0
    )
    toss = TossGateway(options, transport=httpx.MockTransport(network))
    assert await toss.confirm(CHARGE) == Unknown("ReadTimeout")
    ill = False
    trial = asyncio.create_task(toss.confirm(CHARGE))
    await reached.get()
    for _ in range(3):
        assert await toss.confirm(CHARGE) == NotSent("circuit half-open")
    answering.set()
    assert await trial == (CONFIRMED if well else Unknown("ReadTimeout"))
    # Whatever came of it, the next call is not kept waiting for a trial that is over.
    assert await toss.confirm(CHARGE) == (CONFIRMED if well else Unknown("ReadTimeout"))


async def test_failing_confirms_do_not_stop_the_finds_that_resolve_them() -> None:
    network = Flaky()
    toss = gateway(network, breaker_threshold=1, breaker_ttl_s=60)
    await toss.confirm(CHARGE)
    assert await toss.confirm(CHARGE) == NotSent("circuit open")
    network.answer = paid
    assert await toss.find(CHARGE) == CONFIRMED


@pytest.mark.parametrize(
    "answer",
    [
        lambda: refused(403, "REJECT_CARD_PAYMENT"),
        lambda: refused(400, "PROVIDER_ERROR"),
        lambda: paid(totalAmount=1),
    ],
)
async def test_answers_about_a_payment_do_not_open_the_breaker(
    answer: Callable[[], httpx.Response],
) -> None:
    network = Flaky()
    network.answer = answer
    toss = gateway(network, breaker_threshold=1)
    for _ in range(5):
        await toss.confirm(CHARGE)
    assert network.calls == 5


@pytest.mark.parametrize(
    "answer",
    [lambda: httpx.Response(200, html="<h1>"), lambda: refused(500, "UNKNOWN_PAYMENT_ERROR")],
)
async def test_an_ill_gateway_opens_the_breaker(answer: Callable[[], httpx.Response]) -> None:
    network = Flaky()
    network.answer = answer
    toss = gateway(network, breaker_threshold=2)
    for _ in range(5):
        await toss.confirm(CHARGE)
    assert network.calls == 2


async def test_callers_that_go_away_do_not_open_the_breaker() -> None:
    reached: asyncio.Queue[httpx.Request] = asyncio.Queue()

    async def hang(request: httpx.Request) -> httpx.Response:
        reached.put_nowait(request)
        await asyncio.Event().wait()
        raise AssertionError

    toss = TossGateway(
        TossOptions("http://gateway.test", SecretStr(SECRET), breaker_threshold=1),
        transport=httpx.MockTransport(hang),
    )
    for _ in range(3):
        call = asyncio.create_task(toss.confirm(CHARGE))
        await reached.get()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_the_secret_key_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    encoded = base64.b64encode(f"{SECRET}:".encode()).decode()
    options = TossOptions("http://gateway.test", SecretStr(SECRET))
    with caplog.at_level(logging.DEBUG):
        toss, _ = answering(paid(), refused(401, "UNAUTHORIZED_KEY"), refused(500, "X"))
        outcomes = [await toss.confirm(CHARGE) for _ in range(3)]
    shown = f"{options!r} {options} {toss!r} {vars(toss)} {outcomes!r} {caplog.text}"
    assert SECRET not in shown
    assert encoded not in shown
