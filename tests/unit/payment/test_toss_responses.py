"""The Toss adapter against every kind of response: only an exact one counts as charged."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace

import pytest

from payment_service.gateway.exchange import BODY_BYTES_MAX
from payment_service.gateway.outcomes import (
    Declined,
    Mismatch,
    NotCancellable,
    NotFound,
    PartlyCancelled,
    Refund,
    Rejected,
    Unknown,
    Unsupported,
)
from payment_service.gateway.toss_responses import DECLINES, TALLY_FAULTS
from tests.support.gateway_wire import (
    CUT_IN_BODY,
    CUT_IN_HEAD,
    JSON_TYPE,
    LOST,
    NOT_HTTP,
    Reply,
    Request,
    hang,
    reply,
)
from tests.unit.payment.test_toss import (
    CANCELLED,
    CHARGE,
    CONFIRMED,
    PAYMENT,
    given_back,
    outcomes,
    paid,
    refused,
    returning,
)


def raw(content: bytes, headers: dict[str, str] = JSON_TYPE) -> Reply:
    return reply(200, headers=headers, content=content)


def html(status: int) -> Reply:
    return reply(status, content=b"<h1>hello</h1>", headers={"content-type": "text/html"})


WRONG_MONEY: dict[str, list[object]] = {
    "paymentKey": ["key-2", None, 1],
    "orderId": ["order-2", None],
    "currency": ["USD", "krw", None],
    "totalAmount": [14_999, 15_001, -15_000, 15_000.0, "15000", None, True],
    "balanceAmount": [0, 14_999, None, "15000"],
    "lastTransactionKey": ["", None, 7, "a\0b", "x" * 201],
}
NOT_CHARGED: dict[str, tuple[object, object, object]] = {
    "ABORTED": (Declined("ABORTED"), Declined("ABORTED"), Declined("ABORTED")),
    "EXPIRED": (Declined("EXPIRED"), Declined("EXPIRED"), Declined("EXPIRED")),
    "READY": (Unknown, NotFound(), Unknown),
    "IN_PROGRESS": (Unknown, NotFound(), Unknown),
}
UNSUPPORTED = ["WAITING_FOR_DEPOSIT", "SOMETHING_NEW"]
UNREADABLE_STATUSES: list[object] = [None, [], "done", "x" * 200]
PARTS = [{"cancelAmount": 5_000, "cancelReason": "a"}, {"cancelAmount": 1_000}]
PARTLY = {"status": "PARTIAL_CANCELED", "balanceAmount": 9_000}
BAD_PARTS: list[object] = [None, {}, [None], [{"cancelAmount": "5000"}], PARTS[:1], PARTS * 2]
OF_ANOTHER_ORDER = {"orderId": "order-2", "currency": "USD", "totalAmount": 1}
FAILURES: list[tuple[object, str]] = [
    ({"code": "REJECT_CARD_PAYMENT"}, "REJECT_CARD_PAYMENT"),
    ({"code": "<b>no</b>"}, "UNREADABLE_CODE"),
    ({}, "UNREADABLE_CODE"),
    ("text", "ABORTED"),
]
OUTCOME_OPEN: list[tuple[int, object]] = [
    *((400, code) for code in ("PROVIDER_ERROR", "SOMETHING_NEW", "reject_card_payment")),
    *((status, "REJECT_CARD_PAYMENT") for status in (302, 503)),
    *((status, "NOT_FOUND_PAYMENT") for status in (201, 500)),
    *((404, code) for code in (None, ["NOT_FOUND_PAYMENT"])),
    (409, "IDEMPOTENT_REQUEST_PROCESSING"),
    (500, "FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING"),
]
UNREADABLE = {
    "html": html(200),
    "html 404": html(404),
    "html 401": html(401),
    "text": raw(json.dumps(PAYMENT).encode(), {"content-type": "text/plain"}),
    "empty": raw(b""),
    "no content": Reply(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "broken": raw(b'{"status": "DONE"'),
    "not UTF-8": raw(b'{"status": "\xff"}'),
    "list": reply(200, [PAYMENT]),
    "null": raw(b"null"),
    "deep": raw(b"[" * 60_000),
    "digits": raw(b"9" * 60_000),
    "large": reply(200, PAYMENT | {"more": "x" * BODY_BYTES_MAX}),
    "redirect": reply(302, headers={"location": "http://elsewhere.test/"}),
    "redirect with JSON": reply(307, PAYMENT, JSON_TYPE | {"location": "http://elsewhere.test/"}),
    "created": reply(201, PAYMENT),
    "gzip": raw(
        gzip.compress(json.dumps(PAYMENT).encode()), JSON_TYPE | {"content-encoding": "gzip"}
    ),
    "no code": reply(404, {}),
}
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
PERHAPS_ARRIVED = {
    "lost": LOST,
    "cut in the head": CUT_IN_HEAD,
    "cut in the body": CUT_IN_BODY,
    "not HTTP": NOT_HTTP,
    "chunk without a size": Reply(CHUNKED + b"2\r\n{}\r\nx\r\n{}\r\n0\r\n\r\n"),
    "chunk without an end": Reply(CHUNKED + b"2\r\n{}", closes=True),
    "two lengths": Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
    "negative length": Reply(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"),
    "large header": reply(200, PAYMENT, JSON_TYPE | {"x": "y" * 100_000}),
    "many headers": reply(200, PAYMENT, JSON_TYPE | {f"x-{n}": "y" for n in range(1_000)}),
    "NUL in a header": reply(200, PAYMENT, JSON_TYPE | {"x": "\0"}),
    "another protocol": Reply(
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    ),
    "status without a number": Reply(b"HTTP/1.1 OK\r\n\r\n"),
    "only hints": Reply(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3, closes=True),
}

Row = tuple[Reply, tuple[object, ...]]


def row(returned: Reply, *expected: object) -> Row:
    """A reply with the outcomes of confirm, find and cancel, or with one for all."""
    return returned, expected if len(expected) == 3 else expected * 3


ROWS: dict[str, Row] = {
    "paid": row(paid(), CONFIRMED, CONFIRMED, Unknown),
    "given back": row(given_back(), CANCELLED),
    "partly given back": row(
        paid(**PARTLY, cancels=PARTS),
        PartlyCancelled(
            "transaction-1", CHARGE.amount, 6_000, (Refund(5_000, "a"), Refund(1_000, ""))
        ),
        PartlyCancelled(
            "transaction-1", CHARGE.amount, 6_000, (Refund(5_000, "a"), Refund(1_000, ""))
        ),
        Unknown,
    ),
    **{
        f"partly given back, listed as {parts}"[:60]: row(
            paid(**PARTLY, cancels=parts),
            PartlyCancelled("transaction-1", CHARGE.amount, 6_000),
            PartlyCancelled("transaction-1", CHARGE.amount, 6_000),
            Unknown,
        )
        for parts in BAD_PARTS
    },
    **{
        f"partly given back, {balance} left": row(
            paid(status="PARTIAL_CANCELED", balanceAmount=balance), Mismatch(("balanceAmount",))
        )
        for balance in (0, 15_000, -1)
    },
    "closed before a deposit": row(given_back(approvedAt=None), Declined("CANCELED")),
    "given back after a deposit": row(given_back(approvedAt="2026-01-01T00:00:00"), CANCELLED),
    "not found": row(
        refused(404, "NOT_FOUND_PAYMENT"), Declined("NOT_FOUND_PAYMENT"), NotFound(), NotFound()
    ),
    "not cancellable": row(
        refused(403, "REFUND_REJECTED"), Unknown, Unknown, NotCancellable("REFUND_REJECTED")
    ),
    "unauthorized": row(refused(401, "SOMETHING_NEW"), Rejected("SOMETHING_NEW")),
    "too many requests": row(refused(429, "SOMETHING_NEW"), Rejected("SOMETHING_NEW")),
    "another payment": row(
        paid(paymentKey="key-2", orderId="order-2"), Mismatch(("paymentKey", "orderId"))
    ),
    **{
        f"{field} {value!r}"[:40]: row(paid(**{field: value}), Mismatch((field,)))
        for field, values in WRONG_MONEY.items()
        for value in values
    },
    **{
        f"{status}, {content}": row(paid(status=status, **changes), *expected)
        for status, expected in NOT_CHARGED.items()
        for content, changes in {"same": {}, "another order": OF_ANOTHER_ORDER}.items()
    },
    **{
        f"{status}, another key": row(
            paid(status=status, paymentKey="key-2"), Mismatch(("paymentKey",))
        )
        for status in NOT_CHARGED
    },
    **{
        f"failure {failure}": row(paid(status="ABORTED", failure=failure), Declined(code))
        for failure, code in FAILURES
    },
    **{
        f"status {status}": row(
            paid(status=status), Unsupported(status), Unsupported(status), Unknown
        )
        for status in UNSUPPORTED
    },
    **{
        f"status {status}, another order": row(
            paid(status=status, orderId="order-2"), Mismatch(("orderId",))
        )
        for status in UNSUPPORTED
    },
    **{
        f"status {status}"[:20]: row(paid(status=status), Unknown) for status in UNREADABLE_STATUSES
    },
    **{f"{status} {code}": row(refused(status, code), Unknown) for status, code in OUTCOME_OPEN},
    **{code: row(refused(403, code), Rejected(code)) for code in sorted(TALLY_FAULTS)},
    **{name: row(returned, Unknown) for name, returned in UNREADABLE.items()},
    **{name: row(returned, Unknown) for name, returned in PERHAPS_ARRIVED.items()},
}


@pytest.mark.parametrize(("returned", "expected"), ROWS.values(), ids=ROWS)
async def test_each_reply_has_one_outcome_per_operation(
    returned: Reply, expected: tuple[object, ...]
) -> None:
    async with returning(returned, returned, returned) as (toss, wire):
        assert await outcomes(toss) == expected
    # Each was sent once: nothing is repeated, and no redirect followed.
    assert [request.method for request in wire.requests] == ["POST", "GET", "POST"]


@pytest.mark.parametrize("code", sorted(DECLINES))
async def test_a_decline_counts_with_a_4xx_only(code: str) -> None:
    async with returning(refused(400, code), refused(403, code), refused(500, code)) as (toss, _):
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
        (paid(status="ABORTED"), Declined("ABORTED"), Declined("ABORTED")),
        (refused(404, "NOT_FOUND_PAYMENT"), Unknown, Unknown),
        (refused(401, "UNAUTHORIZED_KEY"), Unknown, Unknown),
        (refused(500, "UNKNOWN_PAYMENT_ERROR"), Unknown, Unknown),
        (LOST, Unknown, Unknown),
    ],
)
async def test_an_already_processed_payment_is_looked_up(
    found: Reply, confirm: object, cancel: object
) -> None:
    processed, cancelled_before = (
        refused(400, f"ALREADY_{word}_PAYMENT") for word in ("PROCESSED", "CANCELED")
    )
    replies = processed, found, found, cancelled_before, found
    async with returning(*replies) as (toss, _):
        confirmed, _, cancelled = await outcomes(toss)
    assert (confirmed, cancelled) == (confirm, cancel)


@pytest.mark.parametrize("state", ["away", "full"])
async def test_a_look_up_that_is_not_sent_proves_nothing(state: str) -> None:
    """Not NotSent or Saturated: that would free a payment key that may have been charged."""
    processed = refused(400, "ALREADY_PROCESSED_PAYMENT")
    async with returning(timeout_s=0.3, connections_max=1) as (toss, wire):
        others: list[asyncio.Future[object]] = []

        async def answer(request: Request) -> Reply:
            if state == "away":
                wire.stop()
            else:
                # Another call takes the slot before the look-up does.
                wire.answer = hang
                others.append(asyncio.ensure_future(toss.confirm(CHARGE)))
                await asyncio.sleep(0)
            return replace(processed, closes=True)

        wire.answer = answer
        assert isinstance(await toss.confirm(CHARGE), Unknown)
        assert [request.method for request in wire.requests] == ["POST"] * (1 + len(others))
        await asyncio.gather(*others)
