"""The contract: its comments, its names, and the bounds of every field, from the descriptors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from common.errors import InvalidFields
from common.rpc.validation import check
from protos import generate
from tally.balance.v1 import balance_pb2_grpc
from tally.coupon.v1 import coupon_pb2_grpc
from tally.order.v1 import order_pb2_grpc
from tally.payment.v1 import payment_pb2_grpc
from tally.type.v1.money_pb2 import Money
from tests.support.contract import (
    FILES,
    METHODS,
    REASONS,
    WITHOUT_REQUEST_ID,
    every_method,
    is_list,
    is_read,
    message_class,
)

FOR_OTHER_SERVICES: Final = {"RefundDeduction", "RedeemCoupon", "RestoreCoupon", "CancelPayment"}
OWN_IDS: Final = {
    "BalanceService": {"entry_id"},
    "CouponService": {"campaign_id", "coupon_id"},
    "ProductService": {"product_id"},
    "CartService": {"product_id"},
    "OrderService": {"order_id", "product_id"},
    "SagaService": {"saga_id", "order_id"},
    "PaymentService": {"payment_id"},
}
"""Ids that the service generates: a malformed one is NOT_FOUND, so their form has no rule."""
NOT_REASONS: Final = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"),
    *("RESOURCE_EXHAUSTED", "NEEDS_ATTENTION"),
}
"""Codes and states in the comments of methods."""
ID_PATTERN: Final = "^[A-Za-z0-9._:@-]+$"
KINDS: Final[dict[int, str]] = {
    number: kind for kind, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}
# The field numbers in descriptor.proto of a message's fields, its enums and so on.
MESSAGE_PARTS: Final = {"field": 2, "nested_type": 3, "enum_type": 4, "oneof_decl": 8}
PARTS: Final = {
    descriptor_pb2.FileDescriptorProto: {"message_type": 4, "enum_type": 5, "service": 6},
    descriptor_pb2.DescriptorProto: MESSAGE_PARTS,
    descriptor_pb2.EnumDescriptorProto: {"value": 2},
    descriptor_pb2.ServiceDescriptorProto: {"method": 2},
}


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The comment of each part of the contract, which the stubs do not contain."""
    target = tmp_path_factory.mktemp("protos") / "set.binpb"
    generate.protoc(["--include_source_info", f"--descriptor_set_out={target}"])
    described = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    files = [file for file in described.file if file.package.startswith("tally.")]
    assert {file.package for file in files} == {file.package for file in FILES}
    found: dict[str, str] = {}
    for file in files:
        locations = file.source_code_info.location
        by_path = {tuple(where.path): where.leading_comments.strip() for where in locations}
        found |= {name: by_path.get(path, "") for path, name in parts(file, file.package)}
    return found


def parts(of: Any, name: str, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], str]]:
    """The source path and name of every part below ``of`` that must have a comment."""
    for kind, number in PARTS.get(type(of), {}).items():
        for index, part in enumerate(getattr(of, kind)):
            if kind == "oneof_decl" and any(
                field.proto3_optional and field.oneof_index == index for field in of.field
            ):
                continue  # the compiler's own, of an optional field
            below, full_name = (*path, number, index), f"{name}.{part.name}"
            yield below, full_name
            yield from parts(part, full_name, below)


def method_comments(comments: dict[str, str]) -> dict[str, str]:
    """The comment of each service and method."""
    return {name: text for name, text in comments.items() if re.search(r"Service(\.\w+)?$", name)}


def test_everything_has_a_comment(comments: dict[str, str]) -> None:
    assert comments.keys() >= {method.full_name for method in METHODS}
    assert len(comments) > 300
    missing = [name for name, text in comments.items() if not re.match(r"\S.+\.", text, re.DOTALL)]
    assert missing == []


def test_methods_for_other_services_are_marked(comments: dict[str, str]) -> None:
    marked = {
        name.rpartition(".")[2]
        for name, text in method_comments(comments).items()
        if "For other services only" in text
    }
    assert marked == FOR_OTHER_SERVICES


def test_reasons_in_comments_are_those_of_the_error_table(comments: dict[str, str]) -> None:
    texts = " ".join(method_comments(comments).values())
    assert set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", texts)) - NOT_REASONS == REASONS


def messages(within: Sequence[Descriptor]) -> Iterator[Descriptor]:
    for message in within:
        yield message
        yield from messages(message.nested_types)


ALL_MESSAGES: Final = [
    message for file in FILES for message in messages([*file.message_types_by_name.values()])
]


def test_enum_values_have_the_prefix_and_start_with_unspecified() -> None:
    found = [enum for message in ALL_MESSAGES for enum in message.enum_types]
    assert len(found) >= 6
    for enum in found:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert (enum.values[0].name, enum.values[0].number) == (f"{prefix}UNSPECIFIED", 0)
        assert all(value.name.startswith(prefix) for value in enum.values)


def test_no_amount_or_quantity_has_32_bits_or_is_a_float() -> None:
    fields = [field for message in ALL_MESSAGES for field in message.fields]
    kinds = {field.full_name: KINDS[field.type] for field in fields}
    narrow = {
        name.rpartition(".")[2]
        for name, kind in kinds.items()
        if kind.endswith(("INT32", "FIXED32"))
    }
    # Each of these is bounded, or counted by the service itself.
    assert narrow == {"attempts", "page_size", "percent_discount"}
    assert not [name for name, kind in kinds.items() if kind in {"TYPE_FLOAT", "TYPE_DOUBLE"}]
    amount = Money(currency_code="KRW", amount_minor=2**63 - 1)
    assert Money.FromString(amount.SerializeToString()) == amount


@every_method
def test_requests_and_responses_are_named_after_their_method(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@every_method
def test_mutations_take_a_request_id_and_return_replayed(method: MethodDescriptor) -> None:
    takes = "request_id" in method.input_type.fields_by_name
    assert takes is not (is_read(method) or method.name in WITHOUT_REQUEST_ID)
    assert takes is ("replayed" in method.output_type.fields_by_name)


@every_method
def test_lists_are_paged(method: MethodDescriptor) -> None:
    fields = method.input_type.fields_by_name
    assert ("page_token" in fields) is is_list(method)
    assert ("next_page_token" in method.output_type.fields_by_name) is is_list(method)
    if is_list(method):
        size = fields["page_size"]
        assert (size.type, size.has_presence) == (FieldDescriptor.TYPE_INT32, True)


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def request_fields(message: Descriptor) -> Iterator[FieldDescriptor]:
    """Every field of a request, and of the messages in it."""
    for field in message.fields:
        yield field
        if field.message_type and field.message_type.full_name.startswith("tally."):
            yield from request_fields(field.message_type)


@every_method
def test_every_string_of_a_request_has_the_bound_of_its_kind(method: MethodDescriptor) -> None:
    own = OWN_IDS.get(method.containing_service.name, set())
    for field in request_fields(method.input_type):
        if field.type != FieldDescriptor.TYPE_STRING:
            continue
        rule = rules(field).string
        where = f"{method.name}.{field.name}"
        if field.name == "currency_code":
            assert rule.pattern == "^[A-Z]{3}$", where
        elif field.name == "page_token":
            assert rule.max_len == 1024, where
        elif field.name in own:
            assert (rule.min_len, rule.HasField("max_len"), rule.pattern) == (1, False, ""), where
        elif field.name in {"name", "reason"}:
            assert 0 < rule.max_len <= 500, where
            assert "Cc" in rule.pattern, where
        else:
            longest = 200 if field.name == "payment_key" else 64
            assert (rule.max_len, rule.pattern) == (longest, ID_PATTERN), where


@every_method
def test_every_number_enum_and_money_of_a_request_is_bounded(method: MethodDescriptor) -> None:
    for field in request_fields(method.input_type):
        if field.type in {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64}:
            assert rules(field).WhichOneof("type") in {"int32", "int64"}, field.full_name
        elif field.type == FieldDescriptor.TYPE_ENUM:
            assert rules(field).enum.defined_only, field.full_name
        elif field.message_type and field.message_type.full_name == Money.DESCRIPTOR.full_name:
            (rule,) = rules(field).cel
            assert rule.id.startswith("money."), field.full_name
            assert "1000000000000000" in rule.expression, field.full_name


@every_method
def test_empty_request_is_refused_with_the_required_fields(method: MethodDescriptor) -> None:
    request = message_class(method.input_type)()
    required = {
        field.name
        for field in method.input_type.fields
        if rules(field).required
        or (field.type == FieldDescriptor.TYPE_STRING and not field.has_presence)
    } - {"page_token"}
    if not required and method.name in {"ListCampaigns", "ListProducts", "ListSagas"}:
        check(request)
        return
    with pytest.raises(InvalidFields) as refusal:
        check(request)
    assert {field.field for field in refusal.value.fields} >= (required or {"target"})


def test_every_method_has_a_handler_in_the_stubs() -> None:
    modules = (balance_pb2_grpc, coupon_pb2_grpc, order_pb2_grpc, payment_pb2_grpc)
    for method in METHODS:
        name = f"{method.containing_service.name}Servicer"
        assert any(hasattr(getattr(module, name, None), method.name) for module in modules)


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
    assert generate.main(["--lint"]) == 0
