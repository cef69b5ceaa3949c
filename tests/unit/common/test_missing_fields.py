"""A field that is left out is refused as missing, in every request of every service."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from common.errors import InvalidFields
from common.rpc.validation import check
from tally.order.v1.order_pb2 import CreateOrderRequest, GetOrderRequest, OrderLine, PayOrderRequest
from tally.payment.v1.payment_pb2 import (
    ConfirmPaymentRequest,
    GetConfirmationsRequest,
    ListPaymentsRequest,
)
from tally.type.v1.money_pb2 import Money
from tests.support.contract import every_method, message_class

TYPES = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_MESSAGE}


def told(request: Message) -> dict[str, str]:
    """What a refusal says of each field."""
    try:
        check(request)
    except InvalidFields as refusal:
        return {each.field: each.description for each in refusal.fields}
    return {}


@every_method
def test_each_field_that_an_empty_request_misses_is_required(method: MethodDescriptor) -> None:
    descriptions = told(message_class(method.input_type)())
    by_name = {field.name: field for field in method.input_type.fields}
    found = {
        field: text
        for field, text in descriptions.items()
        if field in by_name and by_name[field].type in TYPES
    }
    assert found.keys() >= {"request_id", "user_id"} & by_name.keys() - _optional(method)
    assert {*found.values()} <= {"required", "required, unless payment_key is given"}


def _optional(method: MethodDescriptor) -> set[str]:
    return {
        field.name
        for field in method.input_type.fields
        if field.has_presence and field.message_type is None
    }


@pytest.mark.parametrize(
    ("request_", "field", "missing"),
    [
        (ConfirmPaymentRequest(), "request_id", True),
        (ConfirmPaymentRequest(request_id="a b"), "request_id", False),
        (ConfirmPaymentRequest(), "amount", True),
        (ConfirmPaymentRequest(amount=Money(amount_minor=1)), "amount.currency_code", True),
        (CreateOrderRequest(), "items", True),
        (CreateOrderRequest(items=[OrderLine()]), "items[0].product_id", True),
        # A number that is left out is 0: the rule says what it may be.
        (CreateOrderRequest(items=[OrderLine()]), "items[0].quantity", False),
        (GetConfirmationsRequest(confirm_request_ids=[""]), "confirm_request_ids[0]", False),
    ],
)
def test_only_what_is_missing_is_told_as_missing(
    request_: Any, field: str, *, missing: bool
) -> None:
    assert (told(request_)[field] == "required") is missing


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (PayOrderRequest(payment_key=""), "payment_key"),
        (ListPaymentsRequest(user_id=""), "user_id"),
        (GetOrderRequest(user_id=""), "user_id"),
    ],
)
def test_an_optional_field_that_is_sent_empty_is_to_be_left_out(
    request_: Message, field: str
) -> None:
    assert told(request_)[field] == "is empty: leave it out, or give it a value"
