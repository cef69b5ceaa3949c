"""The ways to break a field, by what kind of field it is: the contract's limits, written anew.

Told from the contract's words and not from the rules in the .proto files, which they are to test.
A field that no table here knows fails the walk: say what it is, and it is broken from then on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tally.order.v1.order_pb2 import OrderLine
from tally.type.v1.money_pb2 import Money
from tests.integration.contract.told import BAD_TOKEN, TOO_LARGE, Expected, invalid, not_found
from tests.support.orders import UNKNOWN_ID

LIMIT: Final = 10**15
HUGE: Final = "x" * 100_000
"""Beyond what a server takes at all."""
LARGE: Final = "x" * 40_000
_YEAR_10000: Final = 253_402_300_800


@dataclass(frozen=True)
class Break:
    """One way to break a request: what is done to the message, and what it must be told."""

    apply: Callable[[Any], None]
    expected: Expected
    label: str


@dataclass(frozen=True)
class Kind:
    """What a field holds. ``values``: bad ones, with what each must be told, by the field's path.

    A value of None leaves the field out. ``required``: leaving it out, or sending it with nothing
    in it, is refused.
    """

    values: Callable[[str], list[tuple[Any, Expected]]]
    required: bool


# -- kinds ---------------------------------------------------------------------------------------


def text(*bad: str, longest: int) -> Kind:
    """A string whose bad values are all told alike: these, the oversized and the malformed."""

    def values(path: str) -> list[tuple[Any, Expected]]:
        told = [*bad, "", "x" * (longest + 1), LARGE, "\0", "a\0", "\0a", "a\n", "\n", "a\x7f"]
        return [(value, invalid(path)) for value in told] + [(HUGE, TOO_LARGE)]

    return Kind(values, required=True)


def client_id(longest: int = 64) -> Kind:
    """An id that the caller chose."""
    return text("a b", " ", "a/b", "é", "ａ", "😀", "a'b", "a\tb", "a,b", "%", longest=longest)


def own_id(reason: str) -> Kind:
    """An id that the service made: a malformed one is one that does not exist."""

    def values(path: str) -> list[tuple[Any, Expected]]:
        malformed = [
            *("nonsense", "x" * 65, LARGE, "\0", f"{UNKNOWN_ID}\0", f"{UNKNOWN_ID}\n", " ", "é"),
            *(UNKNOWN_ID.upper(), UNKNOWN_ID.replace("-", ""), f"{{{UNKNOWN_ID}}}", "a/b", "'"),
            UNKNOWN_ID.replace("0", "٠"),
        ]
        return [
            ("", invalid(path)),
            *((value, not_found(reason)) for value in malformed),
            (UNKNOWN_ID, not_found(reason, names=UNKNOWN_ID)),
            (HUGE, TOO_LARGE),
        ]

    return Kind(values, required=True)


def own_id_or_none() -> Kind:
    """As ``own_id``, where one that does not exist is no error: see test_conflicts."""
    return Kind(lambda path: [("", invalid(path)), (HUGE, TOO_LARGE)], required=True)


def number(low: int, high: int, bits: int = 64) -> Kind:
    def values(path: str) -> list[tuple[Any, Expected]]:
        least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        beyond = {low - 1, -1, high + 1, least, most, least + 1}
        return [
            (value, invalid(path))
            for value in sorted(beyond)
            if least <= value <= most and not low <= value <= high
        ]

    return Kind(values, required=low > 0)


def money(low: int, *, required: bool = False) -> Kind:
    """An amount of ``low`` to 10^15 minor units."""

    def values(path: str) -> list[tuple[Any, Expected]]:
        amounts = {low - 1, -1, LIMIT + 1, -LIMIT, 10**18 + 1, 2**63 - 1, -(2**63)}
        codes = ["", "krw", "KRWX", "KR", "KR\0", "KRW\0", "KRW\n", "ＫＲＷ", " KRW", LARGE]
        both = [f"{path}.currency_code"] + [f"{path}.amount_minor"] * (low > 0)
        told: list[tuple[Any, Expected]] = [
            *(
                (Money(currency_code="KRW", amount_minor=amount), invalid(f"{path}.amount_minor"))
                for amount in sorted(amounts)
            ),
            *(
                (Money(currency_code=code, amount_minor=1), invalid(f"{path}.currency_code"))
                for code in codes
            ),
            (Money(currency_code=HUGE, amount_minor=1), TOO_LARGE),
            (Money(), invalid(*both)),
        ]
        return [*told, (None, invalid(path))] if required else told

    return Kind(values, required=required)


def time() -> Kind:
    """A time of the years 1970 to 9999. Required; start before end."""

    def values(path: str) -> list[tuple[Any, Expected]]:
        told: list[tuple[Any, Expected]] = [(None, invalid(path))]
        for seconds in (-1, -(2**63), _YEAR_10000, 2**63 - 1):
            order_lost = (seconds > 0) == (path == "start_time")
            named = {path, "end_time"} if order_lost else {path}
            told.append((Timestamp(seconds=seconds), invalid(*named)))
        for nanos in (-1, 10**9, 2**31 - 1, -(2**31)):
            # A second on which start and end are in order either way.
            seconds = 10**9 if path == "start_time" else 10**10
            told.append((Timestamp(seconds=seconds, nanos=nanos), invalid(path)))
        return told

    return Kind(values, required=True)


def lifetime() -> Kind:
    """More than nothing, 3650 days at most."""

    def values(path: str) -> list[tuple[Any, Expected]]:
        most = 3650 * 86_400
        bad = [
            *((0, 0), (-1, 0), (0, -1), (most, 1), (most + 1, 0), (2**63 - 1, 0), (-(2**63), 0)),
            *((1, -1), (-1, 1), (0, 10**9), (0, 2**31 - 1), (1, -(2**31)), (5, 10**9)),
        ]
        told = [(Duration(seconds=seconds, nanos=nanos), invalid(path)) for seconds, nanos in bad]
        return [(None, invalid(path)), *told]

    return Kind(values, required=True)


def state() -> Kind:
    return Kind(
        lambda path: [(value, invalid(path)) for value in (0, 99, -1, 2**31 - 1, -(2**31))],
        required=False,
    )


def token_of(value: object) -> str:
    """What a page token would be that holds this."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def page_token() -> Kind:
    garbage = [
        *("garbage", "====", "=", "é", "\0", "a b", "a\n", "x" * 1024, "x" * 1001, "-_", "null"),
        *map(token_of, (b"\0", b"\xff\xfe", b"[" * 749, b'{"a":' * 140, b"1" * 700, b"NaN")),
        *map(token_of, (None, [], [[]], [[], [], []], {"a": 1, "b": 2}, "ab", [1, 2], [[], {}])),
    ]

    def values(path: str) -> list[tuple[Any, Expected]]:
        return [
            *((value, BAD_TOKEN) for value in garbage),
            ("x" * 1025, invalid(path)),
            (LARGE, invalid(path)),
            (HUGE, TOO_LARGE),
        ]

    return Kind(values, required=False)


def lines() -> Kind:
    """1 to 100 lines, one per product; what one line holds is walked as well."""

    def values(path: str) -> list[tuple[Any, Expected]]:
        def line(product_id: str) -> OrderLine:
            return OrderLine(product_id=product_id, quantity=1)

        many = [line(f"p{i}") for i in range(101)]
        twice = [line(UNKNOWN_ID), line("other"), line(UNKNOWN_ID)]
        bad = [[], many, many * 10, twice, [OrderLine(product_id="p", quantity=1)] * 101]
        return [(value, invalid(path)) for value in bad] + [([line("x" * 900)] * 100, TOO_LARGE)]

    return Kind(values, required=True)


# -- which field is of which kind ------------------------------------------------------------------

_BY_NAME: Final = {
    "user_id": client_id(),
    "request_id": client_id(),
    "payment_key": client_id(200),
    "page_token": page_token(),
    "page_size": number(0, 2**31 - 1, bits=32),
    "expected_version": number(0, 2**63 - 1),
}
_NAME: Final = text(" ", "\u3000", "a\tb", longest=200)
_REASON: Final = text(" ", "\u3000", "a\tb", longest=500)
_BY_FIELD: Final = {
    "balance.v1.ChargeBalanceRequest.amount": money(1, required=True),
    "balance.v1.DeductBalanceRequest.amount": money(1, required=True),
    "balance.v1.DeductBalanceRequest.order_id": client_id(),
    "balance.v1.RefundDeductionRequest.deduct_request_id": client_id(),
    "balance.v1.GetBalanceRequest.currency_code": text("krw", "KR", "KRWX", "ＫＲＷ", longest=3),
    "balance.v1.ListLedgerEntriesRequest.currency_code": text("krw", "KR", "KR ", longest=3),
    "coupon.v1.CreateCampaignRequest.name": _NAME,
    "coupon.v1.CreateCampaignRequest.fixed_discount": money(1),
    "coupon.v1.CreateCampaignRequest.percent_discount": number(1, 100, bits=32),
    "coupon.v1.CreateCampaignRequest.max_discount": money(1),
    "coupon.v1.CreateCampaignRequest.min_order_amount": money(1),
    "coupon.v1.CreateCampaignRequest.quantity": number(1, 10**12),
    "coupon.v1.CreateCampaignRequest.start_time": time(),
    "coupon.v1.CreateCampaignRequest.end_time": time(),
    "coupon.v1.CreateCampaignRequest.coupon_lifetime": lifetime(),
    "coupon.v1.GetCampaignRequest.campaign_id": own_id("CAMPAIGN_NOT_FOUND"),
    "coupon.v1.IssueCouponRequest.campaign_id": own_id("CAMPAIGN_NOT_FOUND"),
    "coupon.v1.GetCouponRequest.coupon_id": own_id("COUPON_NOT_FOUND"),
    "coupon.v1.RedeemCouponRequest.coupon_id": own_id("COUPON_NOT_FOUND"),
    "coupon.v1.RedeemCouponRequest.order_id": client_id(),
    "coupon.v1.RedeemCouponRequest.order_amount": money(1, required=True),
    "coupon.v1.RestoreCouponRequest.coupon_id": own_id_or_none(),
    "coupon.v1.RestoreCouponRequest.redeem_request_id": client_id(),
    "order.v1.CreateProductRequest.name": _NAME,
    "order.v1.CreateProductRequest.price": money(0, required=True),
    "order.v1.CreateProductRequest.stock": number(0, 10**12),
    "order.v1.RestockProductRequest.product_id": own_id("PRODUCT_NOT_FOUND"),
    "order.v1.RestockProductRequest.quantity": number(1, 10**12),
    "order.v1.GetProductRequest.product_id": own_id("PRODUCT_NOT_FOUND"),
    "order.v1.SetCartItemRequest.product_id": own_id("PRODUCT_NOT_FOUND"),
    "order.v1.SetCartItemRequest.quantity": number(0, 10**6),
    "order.v1.OrderLine.product_id": own_id("PRODUCT_NOT_FOUND"),
    "order.v1.OrderLine.quantity": number(1, 10**6),
    "order.v1.CreateOrderRequest.items": lines(),
    "order.v1.PayOrderRequest.order_id": own_id("ORDER_NOT_FOUND"),
    "order.v1.PayOrderRequest.coupon_id": client_id(),
    "order.v1.PayOrderRequest.balance_amount": money(0),
    "order.v1.CancelOrderRequest.order_id": own_id("ORDER_NOT_FOUND"),
    "order.v1.CancelOrderRequest.reason": _REASON,
    "order.v1.GetOrderRequest.order_id": own_id("ORDER_NOT_FOUND"),
    "order.v1.ListOrdersRequest.state": state(),
    "order.v1.WatchOrderRequest.order_id": own_id("ORDER_NOT_FOUND"),
    "order.v1.ListSagasRequest.state": state(),
    "order.v1.GetSagaRequest.saga_id": own_id("SAGA_NOT_FOUND"),
    "order.v1.GetSagaRequest.order_id": own_id("SAGA_NOT_FOUND"),
    "order.v1.RetrySagaRequest.saga_id": own_id("SAGA_NOT_FOUND"),
    "order.v1.ResolveSagaRequest.saga_id": own_id("SAGA_NOT_FOUND"),
    "order.v1.ResolveSagaRequest.reason": _REASON,
    "payment.v1.ConfirmPaymentRequest.order_id": client_id(),
    "payment.v1.ConfirmPaymentRequest.amount": money(1, required=True),
    "payment.v1.CancelPaymentRequest.confirm_request_id": client_id(),
    "payment.v1.CancelPaymentRequest.reason": _REASON,
    "payment.v1.GetPaymentRequest.payment_id": own_id("PAYMENT_NOT_FOUND"),
    "payment.v1.ListPaymentsRequest.order_id": client_id(),
}


def kind_of(field: FieldDescriptor) -> Kind:
    """Raises KeyError for a field that no table knows."""
    kind = _BY_FIELD.get(field.full_name.removeprefix("tally."))
    return kind if kind is not None else _BY_NAME[field.name]


def is_required(field: FieldDescriptor) -> bool:
    """Whether a request without it is refused for it."""
    optional = field.has_presence and field.message_type is None
    return kind_of(field).required and not optional and field.containing_oneof is None


def breaks_of(field: FieldDescriptor, path: str = "") -> Iterator[Break]:
    """Every way to break this field; of a list of messages, also every way to break its second."""
    path = path or field.name
    for value, expected in kind_of(field).values(path):
        yield Break(_setter(field, value), expected, f"{path} = {str(value)[:60]!r}")
    if field.is_repeated and field.message_type is not None:
        for inner in field.message_type.fields:
            for each in breaks_of(inner, f"{path}[1].{inner.name}"):
                yield Break(_within(field.name, each.apply), each.expected, each.label)


def _setter(field: FieldDescriptor, value: Any) -> Callable[[Any], None]:
    def apply(message: Any) -> None:
        message.ClearField(field.name)
        if isinstance(value, list):
            getattr(message, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(message, field.name).CopyFrom(value)
        elif value is not None:
            setattr(message, field.name, value)

    return apply


def _within(name: str, apply: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda message: apply(getattr(message, name)[1])
