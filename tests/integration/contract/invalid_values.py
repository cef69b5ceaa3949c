"""The invalid values of every field, by the kind of the field.

The limits are written from the contract's text and not read from the rules in the .proto files,
which they test. A field whose name is in no table fails the tests until it is added.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tally.balance.v1.balance_pb2 import BatchWriteItem
from tally.coupon.v1.coupon_pb2 import BatchIssueCouponsItem
from tally.order.v1.order_pb2 import OrderLine, StandingEffect
from tally.type.v1.money_pb2 import Money
from tests.integration.contract.statuses import (
    BAD_TOKEN,
    WHOLE_REQUEST,
    ExpectedStatus,
    failed,
    invalid,
    not_found,
)
from tests.integration.contract.valid_requests import copy_of
from tests.support.contract import BULK
from tests.support.orders import UNKNOWN_ID

LIMIT: Final = 10**15
HUGE: Final = "x" * 300_000
"""Beyond the size of a message that a server reads."""
BULK_BYTES: Final = 256 * 1024
LARGE: Final = "x" * 40_000
_YEAR_10000: Final = 253_402_300_800

Values = list[tuple[Any, ExpectedStatus]]
"""Invalid values, each with the status it must return. None: the field is left out."""


@dataclass(frozen=True)
class Kind:
    """What a field holds: its invalid values, given the field's path in the request.

    ``required``: a request without the field, or with an empty one, is refused.
    """

    values: Callable[[str], Values]
    required: bool = True


# -- kinds ---------------------------------------------------------------------------------------


def text(*bad: str, longest: int) -> Kind:
    """A string for which these values, oversized ones and malformed ones are invalid."""
    malformed = [*bad, "", "x" * (longest + 1), LARGE, "\0", "a\0", "\0a", "a\n", "\n", "a\x7f"]
    return Kind(lambda path: [*_all(malformed, invalid(path)), (HUGE, WHOLE_REQUEST)])


def client_id(longest: int = 64) -> Kind:
    """An id that the caller chose."""
    return text("a b", " ", "a/b", "é", "ａ", "😀", "a'b", "a\tb", "a,b", "%", longest=longest)


def own_id(reason: str) -> Kind:
    """An id that the service generates: a malformed one is one that does not exist."""
    malformed = [
        *("nonsense", "x" * 65, LARGE, "\0", f"{UNKNOWN_ID}\0", f"{UNKNOWN_ID}\n", " ", "é"),
        *(UNKNOWN_ID.upper(), UNKNOWN_ID.replace("-", ""), f"{{{UNKNOWN_ID}}}", "a/b", "'"),
        UNKNOWN_ID.replace("0", "٠"),
    ]
    return Kind(
        lambda path: [
            ("", invalid(path)),
            *_all(malformed, not_found(reason)),
            (UNKNOWN_ID, not_found(reason, names=UNKNOWN_ID)),
            (HUGE, WHOLE_REQUEST),
        ]
    )


def own_id_or_unknown() -> Kind:
    """As ``own_id``, where an unknown one is not an error: see test_conflicts."""
    return Kind(lambda path: [("", invalid(path)), (HUGE, WHOLE_REQUEST)])


def number(low: int, high: int, bits: int = 64) -> Kind:
    """An integer from ``low`` to ``high`` in a field of ``bits``."""
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    outside = [
        value
        for value in sorted({low - 1, -1, high + 1, least, most, least + 1})
        if least <= value <= most and not low <= value <= high
    ]
    return Kind(lambda path: _all(outside, invalid(path)), required=low > 0)


def money(low: int, *, required: bool = False) -> Kind:
    """An amount of ``low`` to 10^15 minor units."""
    amounts = sorted({low - 1, -1, LIMIT + 1, -LIMIT, 10**18 + 1, 2**63 - 1, -(2**63)})
    codes = ["", "krw", "KRWX", "KR", "KR\0", "KRW\0", "KRW\n", "ＫＲＷ", " KRW", LARGE]
    wrong_amounts = [Money(currency_code="KRW", amount_minor=amount) for amount in amounts]
    wrong_codes = [Money(currency_code=code, amount_minor=1) for code in codes]

    def values(path: str) -> Values:
        amount, code = f"{path}.amount_minor", f"{path}.currency_code"
        return [
            *_all(wrong_amounts, invalid(amount)),
            *_all(wrong_codes, invalid(code)),
            (Money(currency_code=HUGE, amount_minor=1), WHOLE_REQUEST),
            (Money(), invalid(code, amount) if low > 0 else invalid(code)),
            *([(None, invalid(path))] if required else []),
        ]

    return Kind(values, required)


def time() -> Kind:
    """A time in the years 1970 to 9999; the campaign's start is before its end."""

    def values(path: str) -> Values:
        found: Values = [(None, invalid(path))]
        for seconds in (-1, -(2**63), _YEAR_10000, 2**63 - 1):
            after_end = (seconds > 0) == (path == "start_time")
            names = {path, "end_time"} if after_end else {path}
            found.append((Timestamp(seconds=seconds), invalid(*names)))
        # A second at which start and end are in order whatever the nanos.
        seconds = 10**9 if path == "start_time" else 10**10
        for nanos in (-1, 10**9, 2**31 - 1, -(2**31)):
            found.append((Timestamp(seconds=seconds, nanos=nanos), invalid(path)))
        return found

    return Kind(values)


def past_time() -> Kind:
    """A time in the years 1970 to 9999 that is not in the future, or none."""
    seconds = (-1, -(2**63), _YEAR_10000 - 1, _YEAR_10000, 2**63 - 1)
    nanos = (-1, 10**9, 2**31 - 1, -(2**31))
    bad = [(each, 0) for each in seconds] + [(10**9, each) for each in nanos]
    times = [Timestamp(seconds=second, nanos=nano) for second, nano in bad]
    return Kind(lambda path: _all(times, invalid(path)), required=False)


def lifetime() -> Kind:
    """A duration above 0 of at most 3650 days."""
    most = 3650 * 86_400
    bad = [
        *((0, 0), (-1, 0), (0, -1), (most, 1), (most + 1, 0), (2**63 - 1, 0), (-(2**63), 0)),
        *((1, -1), (-1, 1), (0, 10**9), (0, 2**31 - 1), (1, -(2**31)), (5, 10**9)),
    ]
    durations = [Duration(seconds=seconds, nanos=nanos) for seconds, nanos in bad]
    return Kind(lambda path: _all([None, *durations], invalid(path)))


def age() -> Kind:
    """A duration from 0 to 3650 days, or none."""
    most = 3650 * 86_400
    bad = [
        *((-1, 0), (0, -1), (most, 1), (most + 1, 0), (2**63 - 1, 0), (-(2**63), 0)),
        *((1, -1), (-1, 1), (0, 10**9), (0, 2**31 - 1), (1, -(2**31)), (5, 10**9)),
    ]
    durations = [Duration(seconds=seconds, nanos=nanos) for seconds, nanos in bad]
    return Kind(lambda path: _all(durations, invalid(path)), required=False)


def state() -> Kind:
    """A value of an enum, not the unspecified one."""
    return Kind(lambda path: _all([0, 99, -1, 2**31 - 1, -(2**31)], invalid(path)), required=False)


def token_of(value: object) -> str:
    """A page token with this content."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def page_token() -> Kind:
    """An opaque token of at most 1024 characters."""
    garbage = [
        *("garbage", "====", "=", "é", "\0", "a b", "a\n", "x" * 1024, "x" * 1001, "-_", "null"),
        *map(token_of, (b"\0", b"\xff\xfe", b"[" * 749, b'{"a":' * 140, b"1" * 700, b"NaN")),
        *map(token_of, (None, [], [[]], [[], [], []], {"a": 1, "b": 2}, "ab", [1, 2], [[], {}])),
    ]
    return Kind(
        lambda path: [
            *_all(garbage, BAD_TOKEN),
            *_all(["x" * 1025, LARGE], invalid(path)),
            (HUGE, WHOLE_REQUEST),
        ],
        required=False,
    )


def lines() -> Kind:
    """1 to 100 lines, one per product; the fields of a line have kinds of their own."""

    def of(*product_ids: str) -> list[OrderLine]:
        return [OrderLine(product_id=product_id, quantity=1) for product_id in product_ids]

    many = of(*(f"p{i}" for i in range(101)))
    bad = [[], many, many * 10, of(UNKNOWN_ID, "other", UNKNOWN_ID), of(*["p"] * 101)]
    too_large = of(*["x" * 900] * 100)
    return Kind(lambda path: [*_all(bad, invalid(path)), (too_large, WHOLE_REQUEST)])


def items(item: Message) -> Kind:
    """1 to 1,000 items of a bulk method. An item's own fields refuse the item: test_bulk_items."""
    bad = [[], [item] * 1_001, [item] * 2_000]
    too_large = [item] * (BULK_BYTES // (item.ByteSize() + 2) + 1)
    return Kind(lambda path: [*_all(bad, invalid(path)), (too_large, WHOLE_REQUEST)])


def labels() -> Kind:
    """1 to 1,000 different labels of 1 to 32 bytes."""
    malformed = ["", "a\0", "a\n", "A,1", "\u202e", "e\u0301", "x" * 33, "é" * 17, LARGE]
    return Kind(
        lambda path: [
            *_all([[], [str(n) for n in range(1_001)]], invalid(path)),
            *((["A-1", each], invalid(f"{path}[1]")) for each in (*malformed, "A-1")),
            (["A-1", HUGE], WHOLE_REQUEST),
        ]
    )


def seats() -> Kind:
    """As many labels as the line's quantity, which is 1, or none."""
    malformed = ["", "a\0", "a\n", "A,1", "\u202e", "e\u0301", "x" * 33, LARGE]
    return Kind(
        lambda path: [
            *_all([["A-1", "A-2"], [str(n) for n in range(101)]], invalid(path)),
            *(([each], invalid(f"{path}[0]")) for each in malformed),
            (["A-1", "A-1"], invalid(f"{path}[1]")),
            (["A-1"], failed("PRODUCT_NOT_SEATED", path)),
            ([HUGE], WHOLE_REQUEST),
        ],
        required=False,
    )


def standing() -> Kind:
    """Up to 16 effects, one per step; the fields of an effect have kinds of their own."""

    def of(*steps: str) -> list[StandingEffect]:
        return [StandingEffect(step=step, reason="x") for step in steps]

    many = of(*("a" * i for i in range(1, 18)))
    bad = [many, of("confirm_payment", "x", "confirm_payment")]
    too_large = of(*["x" * 900] * 100)
    return Kind(
        lambda path: [*_all(bad, invalid(path)), (too_large, WHOLE_REQUEST)], required=False
    )


def client_ids() -> Kind:
    """1 to 500 ids that callers chose."""
    malformed = ((["a b", "x"], 0), (["x" * 65], 0), (["x", ""], 1), (["x", "a\0"], 1))
    return Kind(
        lambda path: [
            *_all([[], ["x"] * 501], invalid(path)),
            *((ids, invalid(f"{path}[{number}]")) for ids, number in malformed),
        ]
    )


def _all(values: list[Any], expected: ExpectedStatus) -> Values:
    return [(value, expected) for value in values]


# -- which field is of which kind ------------------------------------------------------------------

_KINDS: Final = {
    **dict.fromkeys(("user_id", "request_id", "deduct_request_id"), client_id()),
    **dict.fromkeys(("redeem_request_id", "confirm_request_id"), client_id()),
    "payment_key": client_id(200),
    "entry_id": own_id("LEDGER_ENTRY_NOT_FOUND"),
    "campaign_id": own_id("CAMPAIGN_NOT_FOUND"),
    "coupon_id": own_id("COUPON_NOT_FOUND"),
    "order_id": own_id("ORDER_NOT_FOUND"),
    "payment_id": own_id("PAYMENT_NOT_FOUND"),
    "product_id": own_id("PRODUCT_NOT_FOUND"),
    "saga_id": own_id("SAGA_NOT_FOUND"),
    "ticket_id": own_id("TICKET_NOT_FOUND"),
    "page_token": page_token(),
    "page_size": number(0, 2**31 - 1, bits=32),
    "state": state(),
    "kind": state(),
    "outcome": replace(state(), required=True),
    **dict.fromkeys(("record_only", "queue_only"), Kind(lambda _: [], required=False)),
    "confirm_request_ids": client_ids(),
    "labels": labels(),
    "seats": seats(),
    "after_version": number(0, 2**63 - 1),
    "last_reason": text(" ", "a", "A B", "É", longest=64),
    "age": age(),
    "standing": standing(),
    "step": text(" ", "A", "a b", "é", longest=64),
    "name": text(" ", "\u3000", "a\tb", longest=200),
    "reason": text(" ", "\u3000", "a\tb", longest=500),
    "currency_code": text("krw", "KR", "KR ", "KRWX", "ＫＲＷ", longest=3),
    "amount": money(1, required=True),
    "order_amount": money(1, required=True),
    "price": money(0, required=True),
    "balance_amount": money(0),
    **dict.fromkeys(("fixed_discount", "max_discount", "min_order_amount"), money(1)),
    "percent_discount": number(1, 100, bits=32),
    "quantity": number(1, 10**12),
    "shares": replace(number(1, 64, bits=32), required=False),
    "stock": number(0, 10**12),
    "expected_version": number(0, 2**63 - 1),
    **dict.fromkeys(("start_time", "end_time"), time()),
    "at_time": past_time(),
    "coupon_lifetime": lifetime(),
    "items": lines(),
    "BatchWriteRequest.items": items(BatchWriteItem()),
    "BatchIssueCouponsRequest.items": items(BatchIssueCouponsItem(user_id="x")),
    # Ids of other services, whose existence is not checked, and other limits.
    "DeductBalanceRequest.order_id": client_id(),
    "RedeemCouponRequest.order_id": client_id(),
    "RestoreCouponRequest.coupon_id": own_id_or_unknown(),
    "ConfirmPaymentRequest.order_id": client_id(),
    "ListPaymentsRequest.order_id": client_id(),
    "PayOrderRequest.coupon_id": client_id(),
    "GetSagaRequest.order_id": own_id("SAGA_NOT_FOUND"),
    "StandingEffect.amount": money(1),
    "ResolvePaymentRequest.amount": money(1),
    "SetCartItemRequest.quantity": number(0, 10**6),
    "OrderLine.quantity": number(1, 10**6),
}
"""Kinds by the field's name; those of ``Message.field`` go first."""


REQUIRED_BY_THEIR_MESSAGE: Final = {"tally.payment.v1.ListPaymentsRequest.user_id"}
"""Optional fields that a request may leave out only if it has another one."""


def kind_of(field: FieldDescriptor) -> Kind:
    """Raises KeyError for a field that the table does not have."""
    assert field.containing_type is not None
    kind = _KINDS.get(f"{field.containing_type.name}.{field.name}")
    return kind if kind is not None else _KINDS[field.name]


def is_required(field: FieldDescriptor) -> bool:
    """Whether a request without the field is refused, and the refusal names the field."""
    if field.full_name in REQUIRED_BY_THEIR_MESSAGE:
        return True
    optional = field.has_presence and field.message_type is None
    return kind_of(field).required and not optional and field.containing_oneof is None


@dataclass(frozen=True)
class InvalidRequest:
    """A request with one invalid field, and the status it must return."""

    label: str
    request: Message
    expected: ExpectedStatus


def invalid_requests(valid: Message, field: FieldDescriptor) -> Iterator[InvalidRequest]:
    """The request with every invalid value of a field; of a list, also of its second message."""
    places = [(field, field.name)]
    bulk = valid.DESCRIPTOR.name.removesuffix("Request") in BULK
    if field.is_repeated and field.message_type is not None and not bulk:
        places += [(inner, f"{field.name}[1].{inner.name}") for inner in field.message_type.fields]
    for place, path in places:
        for value, expected in kind_of(place).values(path):
            request = copy_of(valid)
            _set(request if place is field else getattr(request, field.name)[1], place, value)
            yield InvalidRequest(f"{path} = {str(value)[:60]!r}", request, expected)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    message.ClearField(field.name)
    if isinstance(value, list):
        getattr(message, field.name).extend(value)
    elif isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    elif value is not None:
        setattr(message, field.name, value)
