"""The Toss adapter against every kind of response: only an exact one counts as charged."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from payment_service.gateway.outcomes import (
    Declined,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    PartlyCancelled,
    Refund,
    Rejected,
    Unknown,
    Unsupported,
)
from payment_service.gateway.toss import BODY_BYTES_MAX
from payment_service.gateway.toss_responses import DECLINES, TALLY_FAULTS
from tests.unit.payment.test_toss import (
    CANCELLED,
    CHARGE,
    CONFIRMED,
    JSON,
    PAYMENT,
    given_back,
    outcomes,
    paid,
    refused,
    returning,
)


def raw(content: bytes, headers: dict[str, str] = JSON) -> httpx.Response:
    return httpx.Response(200, headers=headers, content=content)


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

NO_CONNECTION = [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout]
PERHAPS_ARRIVED = [
    *(httpx.ReadTimeout, httpx.WriteTimeout, httpx.ReadError, httpx.WriteError),
    *(httpx.RemoteProtocolError, httpx.LocalProtocolError),
]

Row = tuple[httpx.Response | Exception, tuple[object, ...]]


def row(reply: httpx.Response | Exception, *expected: object) -> Row:
    """A reply with the outcomes of confirm, find and cancel, or with one for all."""
    return reply, expected if len(expected) == 3 else expected * 3


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
    **{name: row(response, Unknown) for name, response in UNREADABLE.items()},
    **{each.__name__: row(each("…"), NotSent(each.__name__)) for each in NO_CONNECTION},
    **{each.__name__: row(each("…"), Unknown) for each in PERHAPS_ARRIVED},
}


@pytest.mark.parametrize(("reply", "expected"), ROWS.values(), ids=ROWS)
async def test_each_reply_has_one_outcome_per_operation(
    reply: httpx.Response | Exception, expected: tuple[object, ...]
) -> None:
    toss, requests = returning(reply, reply, reply)
    assert await outcomes(toss) == expected
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
        (paid(status="ABORTED"), Declined("ABORTED"), Declined("ABORTED")),
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
    processed, cancelled_before = (
        refused(400, f"ALREADY_{word}_PAYMENT") for word in ("PROCESSED", "CANCELED")
    )
    toss, _ = returning(processed, found, found, cancelled_before, found)
    confirmed, _, cancelled = await outcomes(toss)
    assert (confirmed, cancelled) == (confirm, cancel)
