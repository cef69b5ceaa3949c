"""Risks of OWASP's list (docs/security.md) that the contract itself rules out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from common.rpc.access import callers_of
from tally.options.v1 import access_pb2
from tests.support.contract import METHODS, is_read

OF_USERS: Final = {
    *("user_id", "request_id", "expected_version", "reason"),
    *("order_id", "product_id", "campaign_id", "coupon_id", "payment_key"),
    *("items", "quantity", "seats", "balance_amount", "currency_code", "amount_minor"),
}
"""All that a user may write: who he is, what he wants, and what he pays with. Prices, discounts,
states, versions that count and times are the server's."""
ADDRESSES: Final = ("url", "uri", "host", "address", "endpoint", "callback", "webhook", "file")
"""Words in the names of fields that could lead a server elsewhere."""


def fields_of(message: Descriptor) -> Iterator[str]:
    """The names of a message's fields, those of Tally's messages in it included."""
    for field in message.fields:
        yield field.name
        if field.message_type and field.message_type.full_name.startswith("tally."):
            yield from fields_of(field.message_type)


def admits_users(method: MethodDescriptor) -> bool:
    return access_pb2.CALLER_USER in callers_of(method)


def test_requests_name_no_field_that_the_server_decides() -> None:
    """API3. A new field of a user's mutation fails here until a person has looked at it."""
    written = {
        field
        for method in METHODS
        if admits_users(method) and not is_read(method)
        for field in fields_of(method.input_type)
    }
    assert written == OF_USERS


def test_requests_name_no_address() -> None:
    """API7. Where a server connects is said by its settings alone."""
    suspicious = {
        f"{method.name}.{field}"
        for method in METHODS
        for field in fields_of(method.input_type)
        if any(word in field.split("_") for word in ADDRESSES)
    }
    assert suspicious == set()
