"""What ``common.rpc.plain_rules`` accepts, protovalidate accepts too."""

from __future__ import annotations

import random
from typing import Any, Final, cast

import pytest
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from common.rpc.plain_rules import PlainRules
from tally.type.v1.money_pb2 import Money
from tests.support.contract import every_method, message_class

SAMPLES: Final = 300
TEXTS: Final = ("", "a", "KR", "KRW\n", "\nKRW", "K W", "krw", "é", "\x00", "-", "[", "a" * 64)
LONG_TEXTS: Final = ("a" * 65, "A" * 200, "A" * 201, "a" * 1024, "a" * 1025)
NUMBERS: Final = (-(2**31), -1, 0, 2, 64, 65, 100, 101, 10**6, 10**6 + 1, 2**31 - 1)
LARGE_NUMBERS: Final = tuple(
    sign * 10**power + more for sign in (1, -1) for power in (12, 15, 18) for more in (-1, 0, 1)
)
FREQUENT: Final = {
    *("ChargeBalance", "DeductBalance", "RefundDeduction", "GetBalance"),
    *("IssueCoupon", "RedeemCoupon", "RestoreCoupon", "GetCoupon"),
    *("CreateOrder", "PayOrder", "GetOrder", "GetProduct", "SetCartItem"),
    *("ConfirmPayment", "GetPayment"),
}

plain_rules = PlainRules()
violations_of = Validator().collect_violations


def is_refused(message: Message) -> bool:
    return bool(violations_of(message))


def fill(message: Message, choose: random.Random) -> Message:
    """Set most of the fields, and most of them to what is valid nearly everywhere."""
    for field in cast(Descriptor, message.DESCRIPTOR).fields:
        if choose.random() < 0.1 or (field.containing_oneof and choose.random() < 0.3):
            continue
        if field.is_repeated:
            for _ in range(choose.choice([1, 1, 1, 2, 0])):
                _add(getattr(message, field.name), field, choose)
        elif field.message_type is not None:
            value = getattr(message, field.name)
            value.SetInParent()
            fill(value, choose)
        else:
            setattr(message, field.name, _value(field, choose))
    return message


def _add(values: Any, field: FieldDescriptor, choose: random.Random) -> None:
    if field.message_type is not None:
        fill(values.add(), choose)
    else:
        values.append(_value(field, choose))


def _value(field: FieldDescriptor, choose: random.Random) -> Any:
    usual = choose.random() < 0.9
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return "KRW" if usual else choose.choice(TEXTS + LONG_TEXTS)
        case FieldDescriptor.TYPE_INT64:
            return 1 if usual else choose.choice(NUMBERS + LARGE_NUMBERS)
        case FieldDescriptor.TYPE_BOOL:
            return True
        case _:
            return 1 if usual else choose.choice(NUMBERS)


@every_method
def test_no_request_that_breaks_a_rule_is_accepted(method: MethodDescriptor) -> None:
    kind = message_class(method.input_type)
    choose = random.Random(method.full_name)
    requests = [fill(kind(), choose) for _ in range(SAMPLES)]
    accepted = [request for request in requests if plain_rules[kind](request)]
    assert [request for request in accepted if is_refused(request)] == []
    # Without this, nothing would notice that protovalidate is asked for each of them again.
    assert accepted or method.name not in FREQUENT


# Rules that the contract does not have. Some are not known; others are easily misread.
RULES: Final = (
    ("TYPE_STRING", 'string { pattern: "^[a-z--b]+$" }'),  # a difference of classes
    ("TYPE_STRING", 'string { pattern: "^[a-z&&b]+$" }'),
    ("TYPE_STRING", 'string { pattern: "^[a-z" }'),
    ("TYPE_STRING", 'string { pattern: "K" }'),
    ("TYPE_STRING", 'string { pattern: "^[A-Z]+" }'),
    ("TYPE_STRING", 'string { pattern: "^[A-Z]{3}$" min_len: 4 }'),
    ("TYPE_STRING", 'string { pattern: "^[A-Z]{3}$" max_len: 2 }'),
    ("TYPE_STRING", 'string { pattern: "^[A-Z]+$" min_len: 3 max_len: 200 }'),
    ("TYPE_STRING", "string { max_len: 0 }"),
    ("TYPE_STRING", "string { len: 2 }"),
    ("TYPE_STRING", "string { min_len: 2 max_bytes: 1 }"),
    ("TYPE_STRING", 'string { min_len: 1 not_in: "KRW" }'),
    ("TYPE_STRING", "required: true"),
    ("TYPE_STRING", "required: true string { max_len: 3 }"),
    ("TYPE_STRING", "ignore: IGNORE_IF_ZERO_VALUE string { min_len: 2 }"),
    ("TYPE_STRING", 'cel { id: "a" message: "b" expression: "this.size() == 3" }'),
    ("TYPE_STRING", 'cel_expression: "this.size() == 3"'),
    ("TYPE_INT64", "int64 { gt: 1 }"),
    ("TYPE_INT64", "int64 { lt: 1 }"),
    ("TYPE_INT64", "int64 { gte: 1 }"),
    ("TYPE_INT64", "int64 { lte: 1 }"),
    ("TYPE_INT64", "int64 { gte: 100 lte: 2 }"),  # all but the range
    ("TYPE_INT32", "int32 { gte: 0 not_in: 1 }"),
    ("TYPE_INT32", "required: true int32 { gte: 0 }"),
    ("TYPE_BOOL", "bool { const: false }"),
)


def type_of(number: int, kind: str, rules: str) -> type[Message]:
    """A message type with one field of these rules, and a list whose items have them."""
    name = f"plain_rules_{number}"
    file = text_format.Parse(
        f"""
        name: "{name}.proto" package: "{name}" syntax: "proto3"
        dependency: "buf/validate/validate.proto"
        message_type {{
          name: "Sample"
          field {{ name: "one" number: 1 type: {kind} label: LABEL_OPTIONAL
                  options {{ [buf.validate.field] {{ {rules} }} }} }}
          field {{ name: "many" number: 2 type: {kind} label: LABEL_REPEATED
                  options {{ [buf.validate.field] {{ repeated {{ items {{ {rules} }} }} }} }} }}
        }}
        """,
        FileDescriptorProto(),
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{name}.Sample"))


@pytest.mark.parametrize(("number", "kind", "rules"), [(n, *each) for n, each in enumerate(RULES)])
def test_no_rule_is_misread(number: int, kind: str, rules: str) -> None:
    sample = type_of(number, kind, rules)
    choose = random.Random(rules)
    messages = [fill(sample(), choose) for _ in range(SAMPLES)]
    assert [each for each in messages if plain_rules[sample](each) and is_refused(each)] == []


def test_a_map_is_left_to_protovalidate() -> None:
    pool = descriptor_pool.Default()
    file = text_format.Parse(
        """
        name: "plain_map.proto" package: "plain_map" syntax: "proto3"
        dependency: "tally/type/v1/money.proto"
        message_type {
          name: "Sample"
          nested_type {
            name: "PricesEntry" options { map_entry: true }
            field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
            field { name: "value" number: 2 type: TYPE_MESSAGE label: LABEL_OPTIONAL
                    type_name: ".tally.type.v1.Money" }
          }
          field { name: "prices" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED
                  type_name: ".plain_map.Sample.PricesEntry" }
        }
        """,
        FileDescriptorProto(),
    )
    pool.AddSerializedFile(file.SerializeToString())
    sample = GetMessageClass(pool.FindMessageTypeByName("plain_map.Sample"))
    assert not plain_rules[sample](sample(prices={"tea": Money(currency_code="won")}))
