"""The contract itself: what is said of it, what it is called, and that all of it is bounded.

Everything is walked from the descriptors, so a new message is tested the day it is written.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from common.errors import InvalidFields
from common.rpc.validation import check
from protos import generate
from tally.balance.v1 import balance_pb2, balance_pb2_grpc
from tally.coupon.v1 import coupon_pb2, coupon_pb2_grpc
from tally.order.v1 import order_pb2, order_pb2_grpc
from tally.payment.v1 import payment_pb2, payment_pb2_grpc
from tally.type.v1 import money_pb2
from tally.type.v1.money_pb2 import Money

FILES = tuple(
    module.DESCRIPTOR for module in (balance_pb2, coupon_pb2, money_pb2, order_pb2, payment_pb2)
)
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
)
FOR_OTHER_SERVICES = {"RefundDeduction", "RedeemCoupon", "RestoreCoupon", "CancelPayment"}
WITHOUT_REQUEST_ID = {"SetCartItem", "ClearCart"}

# Ids that the service asked has made itself: a malformed one is NOT_FOUND, so no rule on its form.
OWN_IDS = {
    "CouponService": {"campaign_id", "coupon_id"},
    "ProductService": {"product_id"},
    "CartService": {"product_id"},
    "OrderService": {"order_id", "product_id"},
    "SagaService": {"saga_id", "order_id"},
    "PaymentService": {"payment_id"},
}
CODES = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
}
REASONS = set(
    re.findall(
        r"\w+",
        """
    INVALID_FIELD CURRENCY_MISMATCH REQUEST_ID_REUSED INVALID_PAGE_TOKEN AMOUNT_EXCEEDS_DUE
    ACCOUNT_NOT_FOUND CAMPAIGN_NOT_FOUND COUPON_NOT_FOUND PRODUCT_NOT_FOUND ORDER_NOT_FOUND
    PAYMENT_NOT_FOUND SAGA_NOT_FOUND
    COUPON_ALREADY_ISSUED PAYMENT_KEY_USED
    INSUFFICIENT_FUNDS BALANCE_LIMIT_EXCEEDED DEDUCTION_CANCELLED CAMPAIGN_NOT_OPEN
    COUPON_NOT_USABLE COUPON_EXPIRED ORDER_AMOUNT_TOO_SMALL REDEMPTION_CANCELLED OUT_OF_STOCK
    ORDER_NOT_PAYABLE ORDER_NOT_CANCELLABLE PAYMENT_KEY_REQUIRED PAYMENT_DECLINED
    PAYMENT_CANCELLED SAGA_NOT_RETRYABLE
    REQUEST_IN_PROGRESS PAYMENT_IN_PROGRESS CART_CHANGED CONFLICT_RETRIES_EXHAUSTED
    COUPON_SOLD_OUT RATE_LIMITED
    GATEWAY_UNAVAILABLE PAYMENT_OUTCOME_UNKNOWN DATABASE_UNAVAILABLE
    """,
    )
)
ID_PATTERN = "^[A-Za-z0-9._:@-]+$"


def ids(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


every_method = pytest.mark.parametrize("method", METHODS, ids=ids)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Our files with their comments, which the stubs do not keep."""
    target = tmp_path_factory.mktemp("protos") / "set.binpb"
    generate.protoc(["--include_source_info", f"--descriptor_set_out={target}"])
    found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return [file for file in found.file if file.package.startswith("tally.")]


def parts_of_message(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for i, field in enumerate(message.field):
        yield (*path, 2, i), f"{name}.{field.name}"
    synthetic = {f.oneof_index for f in message.field if f.proto3_optional}
    for i, oneof in enumerate(message.oneof_decl):
        if i not in synthetic:
            yield (*path, 8, i), f"{name}.{oneof.name}"
    for i, enum in enumerate(message.enum_type):
        yield from parts_of_enum(enum, (*path, 4, i), f"{name}.{enum.name}")
    for i, nested in enumerate(message.nested_type):
        yield from parts_of_message(nested, (*path, 3, i), f"{name}.{nested.name}")


def parts_of_enum(
    enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for i, value in enumerate(enum.value):
        yield (*path, 2, i), f"{name}.{value.name}"


def parts_of_file(
    file: descriptor_pb2.FileDescriptorProto,
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Source path (field numbers of descriptor.proto) and name of all that wants a comment."""
    for i, message in enumerate(file.message_type):
        yield from parts_of_message(message, (4, i), message.name)
    for i, enum in enumerate(file.enum_type):
        yield from parts_of_enum(enum, (5, i), enum.name)
    for i, service in enumerate(file.service):
        yield (6, i), service.name
        for j, method in enumerate(service.method):
            yield (6, i, 2, j), f"{service.name}.{method.name}"


def comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    locations = file.source_code_info.location
    return {tuple(where.path): where.leading_comments.strip() for where in locations}


def test_everything_has_a_comment(described: list[descriptor_pb2.FileDescriptorProto]) -> None:
    assert {file.package for file in described} == {file.package for file in FILES}
    silent = [
        f"{file.name}: {name}"
        for file in described
        for path, name in parts_of_file(file)
        if not re.match(r"\S.+\.", comments(file).get(path, ""), re.DOTALL)
    ]
    assert silent == []


def test_rpcs_for_other_services_say_so(
    described: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    said = {
        name.split(".")[1]
        for file in described
        for path, name in parts_of_file(file)
        if path[0] == 6 and "For other services only" in comments(file)[path]
    }
    assert said == FOR_OTHER_SERVICES


def test_every_reason_told_in_the_contract_is_one_of_the_error_table(
    described: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    told = {
        reason
        for file in described
        for path, _ in parts_of_file(file)
        if path[0] == 6
        for reason in re.findall(r"[A-Z]+(?:_[A-Z]+)+", comments(file)[path])
    }
    unknown = told - REASONS - CODES - {"NEEDS_ATTENTION"}
    assert unknown == set()
    assert told >= REASONS


def enums(message: Descriptor) -> Iterator[tuple[str, list[str], int]]:
    for enum in message.enum_types:
        yield enum.name, [value.name for value in enum.values], enum.values[0].number
    for nested in message.nested_types:
        yield from enums(nested)


def test_enum_values_carry_their_prefix_and_begin_with_unspecified() -> None:
    found = [e for f in FILES for m in f.message_types_by_name.values() for e in enums(m)]
    assert len(found) >= 6
    for name, values, first in found:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() + "_"
        assert (values[0], first) == (f"{prefix}UNSPECIFIED", 0)
        assert all(value.startswith(prefix) for value in values)


@every_method
def test_requests_and_responses_are_named_after_their_rpc(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@every_method
def test_mutations_take_a_request_id_and_tell_replays(method: MethodDescriptor) -> None:
    reads = method.name.startswith(("Get", "List", "Watch"))
    takes = "request_id" in method.input_type.fields_by_name
    assert takes is not (reads or method.name in WITHOUT_REQUEST_ID)
    assert takes is ("replayed" in method.output_type.fields_by_name)


@every_method
def test_lists_are_paged(method: MethodDescriptor) -> None:
    if not method.name.startswith("List"):
        assert "page_token" not in method.input_type.fields_by_name
        return
    size = method.input_type.fields_by_name["page_size"]
    assert (size.type, size.has_presence) == (FieldDescriptor.TYPE_INT32, True)
    assert "page_token" in method.input_type.fields_by_name
    assert "next_page_token" in method.output_type.fields_by_name


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def request_fields(message: Descriptor) -> Iterator[FieldDescriptor]:
    """Every field that a request holds, its own messages' included."""
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
def test_every_number_and_enum_of_a_request_is_bounded(method: MethodDescriptor) -> None:
    for field in request_fields(method.input_type):
        kind = rules(field).WhichOneof("type")
        if field.type in {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64}:
            assert kind in {"int32", "int64"}, field.full_name
        elif field.type == FieldDescriptor.TYPE_ENUM:
            assert rules(field).enum.defined_only, field.full_name


@every_method
def test_every_money_of_a_request_has_its_range(method: MethodDescriptor) -> None:
    for field in method.input_type.fields:
        if field.message_type and field.message_type.full_name == Money.DESCRIPTOR.full_name:
            assert [rule.id[:6] for rule in rules(field).cel] == ["money."], field.full_name
            assert "1000000000000000" in rules(field).cel[0].expression


@every_method
def test_an_empty_request_is_refused_naming_what_is_required(method: MethodDescriptor) -> None:
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


def message_class(descriptor: Descriptor) -> type[Message]:
    module = descriptor.file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
    found: type[Message] = getattr(import_module(module), descriptor.name)
    return found


def test_every_rpc_has_a_handler_in_the_stubs() -> None:
    modules = (balance_pb2_grpc, coupon_pb2_grpc, order_pb2_grpc, payment_pb2_grpc)
    for method in METHODS:
        name = f"{method.containing_service.name}Servicer"
        assert any(hasattr(getattr(module, name, None), method.name) for module in modules)


def test_drift_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
