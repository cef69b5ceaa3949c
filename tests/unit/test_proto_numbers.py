"""Numbers of the contract: 32 bits wrap in silence where a language's own integers are wider."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1 import money_pb2

FILES = (balance_pb2, coupon_pb2, order_pb2, payment_pb2, money_pb2)
NARROW = {
    getattr(FieldDescriptor, f"TYPE_{kind}")
    for kind in ("INT32", "UINT32", "SINT32", "FIXED32", "SFIXED32")
}
INEXACT = {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}
NARROW_ALLOWED = {"attempts", "page_size", "percent_discount"}
"""Small by their nature: each is bounded, or counted by the service itself."""


def messages(within: Descriptor) -> Iterator[Descriptor]:
    yield within
    for inner in within.nested_types:
        yield from messages(inner)


def fields() -> list[FieldDescriptor]:
    return [
        field
        for file in FILES
        for top in file.DESCRIPTOR.message_types_by_name.values()
        for message in messages(top)
        for field in message.fields
    ]


def test_no_amount_and_no_quantity_has_32_bits_or_is_inexact() -> None:
    found = fields()
    assert {field.name for field in found if field.type in NARROW} == NARROW_ALLOWED
    assert [field.full_name for field in found if field.type in INEXACT] == []
    amount = money_pb2.Money.DESCRIPTOR.fields_by_name["amount_minor"]
    assert amount.type == FieldDescriptor.TYPE_INT64


def test_what_is_wider_is_not_cut_on_its_way() -> None:
    """The largest of 64 bits, and not what is left of it in 32."""
    largest = 2**63 - 1
    sent = money_pb2.Money(currency_code="KRW", amount_minor=largest).SerializeToString()
    assert money_pb2.Money.FromString(sent).amount_minor == largest
