"""The contract: its comments, its names and its shapes, from sources and descriptors.

The bounds of every field are tested in tests/integration/contract, by requests that exceed them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from protos import generate
from tally.type.v1.money_pb2 import Money
from tests.support.contract import (
    BULK,
    FILES,
    METHODS,
    METHODS_BY_NAME,
    OF_CALLERS,
    REASONS,
    WITHOUT_REQUEST_ID,
    every_method,
    is_list,
    is_read,
)

FOR_OTHER_SERVICES: Final = {
    *("RefundDeduction", "RedeemCoupon", "RestoreCoupon", "CancelPayment", "GetConfirmations")
}
NOT_REASONS: Final = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"),
    *("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "NEEDS_ATTENTION", "WAITING_FOR_DEPOSIT"),
    *("TALLY_PAYMENT_CONFIRM_WINDOW_S", "TALLY_ORDER_PRODUCT_CACHE_S"),
}
"""Codes, states and settings in the comments of methods."""
_COMMENTED: Final = re.compile(r"((?:^ *//.*\n)+) *(?:rpc|service) (\w+)", re.MULTILINE)
COMMENTS: Final = {
    name: comment
    for source in generate.PROTOS.glob("tally/**/*.proto")
    for comment, name in _COMMENTED.findall(source.read_text(encoding="utf-8"))
}
"""The comment of each service and method, which the stubs do not contain."""


def test_methods_for_other_services_are_marked() -> None:
    assert COMMENTS.keys() >= {method.name for method in METHODS}
    marked = {name for name, text in COMMENTS.items() if "For other services only" in text}
    assert marked == FOR_OTHER_SERVICES


def test_reasons_in_comments_are_those_of_the_error_table() -> None:
    texts = " ".join(COMMENTS.values())
    assert set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", texts)) - NOT_REASONS == REASONS | OF_CALLERS


def messages(within: Iterable[Descriptor]) -> Iterator[Descriptor]:
    for message in within:
        yield message
        yield from messages(message.nested_types)


def test_no_amount_or_quantity_has_32_bits_or_is_a_float() -> None:
    fields = [
        field
        for file in FILES
        for message in messages(file.message_types_by_name.values())
        for field in message.fields
    ]
    types = FieldDescriptor
    narrow_types = {types.TYPE_INT32, types.TYPE_UINT32, types.TYPE_SINT32}
    narrow_types |= {types.TYPE_FIXED32, types.TYPE_SFIXED32}
    # Each of these is bounded, or counted by the service itself.
    narrow = {field.name for field in fields if field.type in narrow_types}
    assert narrow == {"attempts", "page_size", "percent_discount", "shares"}
    assert not {types.TYPE_FLOAT, types.TYPE_DOUBLE} & {field.type for field in fields}
    amount = Money(currency_code="KRW", amount_minor=2**63 - 1)
    assert Money.FromString(amount.SerializeToString()) == amount


@every_method
def test_mutations_take_a_request_id_and_return_replayed(method: MethodDescriptor) -> None:
    takes = "request_id" in method.input_type.fields_by_name
    assert takes is not (is_read(method) or method.name in WITHOUT_REQUEST_ID | BULK)
    assert takes is ("replayed" in method.output_type.fields_by_name)


def message_of(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


@pytest.mark.parametrize("name", sorted(BULK))
def test_bulk_items_take_a_request_id_and_results_are_an_error_or_not(name: str) -> None:
    method = METHODS_BY_NAME[name]
    item = message_of(method.input_type.fields_by_name["items"])
    requests = [message_of(field) for each in item.oneofs for field in each.fields] or [item]
    assert all("request_id" in request.fields_by_name for request in requests)
    result = message_of(method.output_type.fields_by_name["results"])
    outcome, error = result.oneofs_by_name["outcome"].fields
    assert message_of(error).full_name == "google.rpc.Status"
    assert "replayed" in {*result.fields_by_name, *message_of(outcome).fields_by_name}


@every_method
def test_lists_are_paged(method: MethodDescriptor) -> None:
    fields = method.input_type.fields_by_name
    assert ("page_token" in fields) is is_list(method)
    assert ("next_page_token" in method.output_type.fields_by_name) is is_list(method)
    if is_list(method):
        size = fields["page_size"]
        assert (size.type, size.has_presence) == (FieldDescriptor.TYPE_INT32, True)


def test_stub_drift_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert generate.drifted() == []
    generate.generate(tmp_path)
    tampered = tmp_path / "tally/type/v1/money_pb2.py"
    tampered.write_text(tampered.read_text() + "\n")
    (tmp_path / "tally/stale_pb2.py").write_text("")
    (tmp_path / "tally/type/v1/money_pb2.pyi").unlink()
    monkeypatch.setattr(generate, "GENERATED", tmp_path)
    assert generate.drifted() == [
        "tally/stale_pb2.py",
        "tally/type/v1/money_pb2.py",
        "tally/type/v1/money_pb2.pyi",
    ]
    assert generate.main(["--check"]) == 1


def test_lint_passes() -> None:
    """buf's STANDARD rules for names, and COMMENTS: everything in the contract has a comment."""
    assert generate.main(["--lint"]) == 0
