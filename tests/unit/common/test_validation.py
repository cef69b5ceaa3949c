"""Rules of the .proto files become refusals that name the field and echo nothing."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import InvalidFields
from common.rpc.validation import VIOLATIONS_MAX, check
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.type.v1 import money_pb2


def charge(**given: object) -> balance_pb2.ChargeBalanceRequest:
    fields: dict[str, object] = {
        "user_id": "u1",
        "request_id": "r1",
        "amount": money_pb2.Money(currency_code="KRW", amount_minor=100),
    }
    return balance_pb2.ChargeBalanceRequest(**(fields | given))  # type: ignore[arg-type]


def fields_of(request: object) -> list[str]:
    with pytest.raises(InvalidFields) as caught:
        check(request)  # type: ignore[arg-type]
    assert all(violation.description for violation in caught.value.fields)
    return [violation.field for violation in caught.value.fields]


def test_a_valid_request_passes() -> None:
    check(charge())


def test_a_message_without_rules_passes() -> None:
    check(StringValue(value="anything"))


def test_a_nested_field_is_named_by_its_path() -> None:
    request = charge(amount=money_pb2.Money(currency_code="KRW", amount_minor=0))
    assert fields_of(request) == ["amount.amount_minor"]
    request = charge(amount=money_pb2.Money(currency_code="won", amount_minor=100))
    assert fields_of(request) == ["amount.currency_code"]


def test_a_missing_message_is_named() -> None:
    assert fields_of(charge(amount=None)) == ["amount"]


def test_a_rule_about_two_fields_names_the_one_to_blame() -> None:
    request = coupon_pb2.CreateCampaignRequest()
    request.start_time.seconds = 2
    request.end_time.seconds = 1
    assert "end_time" in fields_of(request)


def test_a_field_of_a_listed_message_is_named_by_its_index() -> None:
    request = order_pb2.CreateOrderRequest(user_id="u1", request_id="r1")
    request.items.add(product_id="p1", quantity=1)
    request.items.add(product_id="p2", quantity=0)
    assert fields_of(request) == ["items[1].quantity"]


def test_all_wrong_fields_are_named() -> None:
    told = fields_of(charge(user_id="no spaces", request_id=""))
    assert set(told) == {"user_id", "request_id"}


@pytest.mark.parametrize("bad", ["", "a\x00b", "x" * 65, "sp ace", "é"])
def test_an_id_that_breaks_its_rule_is_refused_without_echo(bad: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        check(charge(user_id=bad))
    [violation] = caught.value.fields
    assert violation.field == "user_id"
    assert not bad or bad not in violation.description


def test_a_thousand_violations_are_told_in_a_bounded_number() -> None:
    request = order_pb2.CreateOrderRequest(user_id="u1", request_id="r1")
    for _ in range(1000):
        request.items.add(product_id="", quantity=0)
    assert 0 < len(fields_of(request)) <= VIOLATIONS_MAX
