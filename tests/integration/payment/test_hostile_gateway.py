"""A gateway that is not one, or lies: no outcome is guessed, none charged twice, nothing leaks."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from common.db.database import Database
from common.errors import RemoteRefusal
from common.money import Money
from common.rpc.status import from_rpc_error
from payment_service.gateway.exchange import BODY_BYTES_MAX
from payment_service.gateway.outcomes import Cancelled, PartlyCancelled, Refund
from tally.payment.v1 import payment_pb2 as pb
from tests.support.gateway_wire import (
    JSON_TYPE,
    TRICKLE,
    GatewayWire,
    Reply,
    Request,
    gateway_wire,
    reply,
)
from tests.support.payments import Serve, confirm, until

CANARY: Final = "canary-of-the-gateway"
SECRET: Final = "test_sk_canary"
AMOUNT: Final = 15_000


@dataclass
class Gateway:
    """Where the payment service takes a gateway to be."""

    url: str
    secret_key: str = SECRET


def payment(key: str, **changes: Any) -> dict[str, Any]:
    """The payment as an honest gateway reports it, with some fields changed."""
    return {
        "paymentKey": key,
        "orderId": "order-1",
        "status": "DONE",
        "currency": "KRW",
        "totalAmount": AMOUNT,
        "balanceAmount": AMOUNT,
        "lastTransactionKey": f"transaction-of-{key}",
        "note": CANARY,
        **changes,
    }


def lies(key: str, elsewhere: str) -> dict[str, Reply]:
    """Replies to a confirm of the key that prove nothing."""
    paid = json.dumps(payment(key)).encode()

    def raw(content: bytes, **headers: str) -> Reply:
        return reply(200, content=content, headers={**JSON_TYPE, **headers})

    def other(**changes: Any) -> Reply:
        return reply(200, payment(key, **changes))

    return {
        "HTML": reply(
            200, content=f"<h1>{CANARY}</h1>".encode(), headers={"content-type": "text/html"}
        ),
        "an HTML error": reply(
            404, content=f"<h1>{CANARY}</h1>".encode(), headers={"content-type": "text/html"}
        ),
        "a redirect": reply(302, payment(key), {**JSON_TYPE, "location": elsewhere}),
        "a redirect of the request": reply(307, payment(key), {**JSON_TYPE, "location": elsewhere}),
        "a huge body": other(more=CANARY * BODY_BYTES_MAX),
        "a body without an end": TRICKLE,
        "a compressed body": raw(gzip.compress(paid), **{"content-encoding": "gzip"}),
        "deep JSON": raw(b'{"a":' * 10_000),
        "JSON that is not UTF-8": raw(paid.replace(b"canary", b"\xff\xfe")),
        "half of a surrogate": raw(paid.replace(b"DONE", rb"\ud800")),
        "an error with a long text": reply(
            500, {"code": "UNKNOWN_PAYMENT_ERROR", "message": CANARY * 1_000}
        ),
        "an unreadable code": reply(400, {"code": f"{CANARY}\n", "message": CANARY}),
        "less money": other(totalAmount=AMOUNT - 1, balanceAmount=AMOUNT - 1),
        "more money": other(totalAmount=AMOUNT + 1, balanceAmount=AMOUNT + 1),
        "an amount that is a float": other(totalAmount=float(AMOUNT)),
        "an amount that is huge": other(totalAmount=10**4_000),
        "another currency": other(currency="USD"),
        "another order": other(orderId=CANARY),
        "another payment": other(paymentKey=CANARY),
        "a status that is none": other(status=CANARY),
        "a transaction with a line break": other(lastTransactionKey=f"{CANARY}\n"),
    }


def key_in(request: Request) -> str:
    """The payment_key of a request."""
    if request.method == "GET":
        return request.target.rpartition("/")[2]
    return str(request.json["paymentKey"])


@dataclass
class Liar:
    """A gateway that lies about each payment until it is to tell the truth: it never had any."""

    elsewhere: str
    honest: bool = False

    async def __call__(self, request: Request) -> Reply:
        key = key_in(request)
        if not self.honest:
            return lies(key, self.elsewhere)[NAMES[key]]
        if request.method == "GET":
            return reply(404, {"code": "NOT_FOUND_PAYMENT", "message": CANARY})
        return reply(200, payment(key))


NAMES: Final = {f"key-{number}": name for number, name in enumerate(lies("", ""))}
"""The lie about each payment, by its key."""


async def refusal_of(payments: Any, key: str) -> RemoteRefusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await payments.ConfirmPayment(confirm(key, f"confirm-{key}"))
    return from_rpc_error(caught.value)


async def states(payments: Any) -> dict[str, int]:
    listed = await payments.ListPayments(pb.ListPaymentsRequest(user_id="ann", page_size=500))
    return {one.payment_key: one.state for one in listed.payments}


def check_confirmed_as_one(wire: GatewayWire, key: str) -> None:
    """All confirms of the key are one at a gateway that honours idempotency keys."""
    sent = {
        (request.headers["idempotency-key"], request.body)
        for request in wire.requests
        if request.method == "POST" and key_in(request) == key
    }
    assert len(sent) == 1


async def test_a_gateway_that_lies_is_not_believed(serve: Serve, sessions: Database) -> None:
    """Each payment is unknown until the gateway tells what it did, and then confirmed once."""
    limits = {"gateway_timeout_s": 10.0, "gateway_breaker_failures": 1_000}
    async with gateway_wire(Liar("")) as elsewhere:
        liar = Liar(f"{elsewhere.url}/v1/payments/confirm")
        async with gateway_wire(liar) as wire, serve(1, Gateway(wire.url), **limits) as (payments,):
            with capture_logs() as logged:
                refusals = await asyncio.gather(*(refusal_of(payments, key) for key in NAMES))
                found = {
                    name: one.reason for name, one in zip(NAMES.values(), refusals, strict=True)
                }
                assert found == dict.fromkeys(NAMES.values(), "PAYMENT_OUTCOME_UNKNOWN")
                assert await states(payments) == dict.fromkeys(NAMES, pb.Payment.STATE_UNKNOWN)
                liar.honest = True
                confirmed = dict.fromkeys(NAMES, pb.Payment.STATE_CONFIRMED)
                await until(lambda: states(payments), lambda now: now == confirmed)
            for key in NAMES:
                again = await payments.ConfirmPayment(confirm(key, f"confirm-{key}"))
                assert again.payment.gateway_transaction_id == f"transaction-of-{key}"
                check_confirmed_as_one(wire, key)
        assert elsewhere.requests == []
    told = [f"{one.message} {one.metadata}" for one in refusals]
    for text in (*told, *map(str, logged), *await rows(sessions)):
        assert CANARY not in text
        assert SECRET not in text


async def rows(sessions: Database) -> list[str]:
    """Every row of the service."""
    async with sessions.begin() as connection:
        names = await connection.execute(
            sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        )
        found: list[Any] = []
        for (name,) in names:
            found += await connection.execute(sa.text(f'SELECT t::text FROM "{name}" t'))
    return [str(row) for row in found]


def test_the_reasons_of_refunds_are_not_in_an_outcomes_text() -> None:
    """Outcomes are logged by their text, and the gateway may send anything as a reason."""
    given_back = (Refund(1, CANARY),)
    for outcome in (
        PartlyCancelled("t", Money("KRW", 2), 1, given_back),
        Cancelled("t", Money("KRW", 1), given_back),
    ):
        assert CANARY not in repr(outcome)
