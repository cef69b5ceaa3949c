"""Rules of the .proto files become refusals that name the field and contain no value."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import InvalidFields
from common.rpc.validation import VIOLATIONS_MAX, check
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.type.v1 import money_pb2


def charge(**given: object) -> balance_pb2.ChargeBalanceRequest:
    fields: dict[str, object] = {"user_id": "u1", "request_id": "r1", "amount": money("KRW", 100)}
    return balance_pb2.ChargeBalanceRequest(**(fields | given))  # type: ignore[arg-type]


def money(currency_code: str, amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_minor=amount_minor)


def order(*quantities: int) -> order_pb2.CreateOrderRequest:
    request = order_pb2.CreateOrderRequest(user_id="u1", request_id="r1")
    for number, quantity in enumerate(quantities):
        request.items.add(product_id=f"p{number}", quantity=quantity)
    return request


def campaign(start_s: int, end_s: int) -> coupon_pb2.CreateCampaignRequest:
    request = coupon_pb2.CreateCampaignRequest()
    request.start_time.seconds, request.end_time.seconds = start_s, end_s
    return request


def fields_of(request: Message) -> list[str]:
    with pytest.raises(InvalidFields) as caught:
        check(request)
    assert all(violation.description for violation in caught.value.fields)
    return [violation.field for violation in caught.value.fields]


@pytest.mark.parametrize("request_", [charge(), StringValue(value="a message without rules")])
def test_a_valid_request_passes(request_: Message) -> None:
    check(request_)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (charge(amount=money("KRW", 0)), ["amount.amount_minor"]),
        (charge(amount=money("won", 100)), ["amount.currency_code"]),
        (charge(amount=None), ["amount"]),
        (charge(user_id="no spaces", request_id=""), ["user_id", "request_id"]),
        (order(1, 0), ["items[1].quantity"]),
    ],
)
def test_every_invalid_field_is_named_by_its_path(request_: Message, expected: list[str]) -> None:
    assert sorted(fields_of(request_)) == sorted(expected)


def test_a_rule_about_two_fields_names_one_of_them() -> None:
    assert "end_time" in fields_of(campaign(start_s=2, end_s=1))


@pytest.mark.parametrize("bad", ["", "a\x00b", "x" * 65, "sp ace", "é"])
def test_an_invalid_id_is_refused_without_its_value(bad: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        check(charge(user_id=bad))
    [violation] = caught.value.fields
    assert violation.field == "user_id"
    assert not bad or bad not in violation.description


def test_the_number_of_reported_violations_is_bounded() -> None:
    assert 0 < len(fields_of(order(*[0] * 1000))) <= VIOLATIONS_MAX
