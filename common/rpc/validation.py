"""Parses a request, and checks it against the protovalidate rules of its .proto file.

A rule about several fields belongs to their message and has no field of its own. Its ``id`` begins
with the field to report and a dot (``end_time.after_start_time``): a refusal always names a field.
A rule whose id begins with ``money.`` belongs to a Money and is about its number.

A field that is left out is "required", whatever rule of its value it breaks. Of an optional field
that is sent without a value, the refusal says to leave it out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeAlias

from google.protobuf.message import DecodeError, Message
from protovalidate import Validator, Violation

from common.errors import FieldViolation, InvalidField, InvalidFields
from common.rpc.plain_rules import PlainRules

Parse: TypeAlias = Callable[[bytes], Message]

MESSAGE_BYTES_MAX: Final = 64 * 1024
"""Checked here, where the refusal can name the size. Above the transport's limit
(``common.rpc.server``), which is a few times larger, gRPC's status has no reason."""
BULK_BYTES_MAX: Final = 256 * 1024
"""The same for bulk methods: a thousand items of the largest fields are 220 KB."""
VIOLATIONS_MAX: Final = 10
MAP_KEY_CHARS_MAX: Final = 40
MONEY_RULE: Final = "money."
REQUIRED: Final = "required"
"""What is said of a field that is missing."""
EMPTY: Final = "is empty: leave it out, or give it a value"
"""The same of an optional field."""

# One per process: it compiles the rules of a message type once.
_collect: Final = Validator().collect_violations
_plain_rules: Final = PlainRules()


def parse_request(parse: Parse, raw: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> Message:
    """The parsed, valid request. Raises InvalidFields."""
    check_size(raw, bytes_max)
    request = parse_message(parse, raw)
    check(request)
    return request


def check_size(raw: bytes, bytes_max: int) -> None:
    """Raise InvalidField if the message is too large."""
    if len(raw) > bytes_max:
        size = f"has {len(raw)} bytes; a message may have at most {bytes_max}"
        raise InvalidField("request", size)


def parse_message(parse: Parse, raw: bytes) -> Message:
    """The parsed request, which need not be valid. Raises InvalidField."""
    try:
        return parse(raw)
    except DecodeError:
        raise InvalidField("request", "is not a well-formed message of its type") from None


async def parse_stream(parse: Parse, raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for raw in raws:
        yield parse_request(parse, raw)


def check(request: Message) -> None:
    """Raise InvalidFields with the fields that break a rule, at most VIOLATIONS_MAX of them.

    Descriptions are texts of the rules. They never contain values, which may be huge or secret.
    """
    if _plain_rules[type(request)](request):
        return
    violations = _collect(request)
    if violations:
        raise InvalidFields(_field_violation(request, each) for each in violations[:VIOLATIONS_MAX])


def _field_violation(request: Message, violation: Violation) -> FieldViolation:
    proto = violation.proto
    path = _path(violation)
    if not path:
        path = proto.rule_id.split(".", 1)[0]
    elif proto.rule_id.startswith(MONEY_RULE):
        path += ".amount_minor"
    description = _absence(request, violation) or proto.message
    return FieldViolation(path, description or f"breaks the rule {proto.rule_id}")


def _absence(request: Message, violation: Violation) -> str:
    """What is said of a field without a value; '' if it has one.

    A number that is left out is 0, and the rule says the rest.
    """
    field_path = violation.proto.field
    elements = field_path.elements if field_path else ()
    message: Any = request
    for element in elements[:-1]:
        message = getattr(message, element.field_name)
        if element.subscript is not None:
            message = message[element.subscript.value]
    if not elements or elements[-1].subscript is not None:
        return ""
    name = elements[-1].field_name
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        return ""  # a oneof
    if field.has_presence and not message.HasField(name):
        return REQUIRED
    if field.has_presence:
        return EMPTY if field.type == field.TYPE_STRING and not getattr(message, name) else ""
    may_be_missing = field.is_repeated or field.type in {field.TYPE_STRING, field.TYPE_ENUM}
    return REQUIRED if may_be_missing and not getattr(message, name) else ""


def _path(violation: Violation) -> str:
    """The field's path, such as ``items[1].quantity``; '' for a rule about several fields."""
    field = violation.proto.field
    parts = []
    for element in field.elements if field else ():
        if element.subscript is None:
            parts.append(element.field_name)
            continue
        index = element.subscript.value
        if isinstance(index, str):
            key = index[:MAP_KEY_CHARS_MAX].replace('"', "'")
            parts.append(f'{element.field_name}["{key}"]')
        else:
            parts.append(f"{element.field_name}[{index}]")
    return ".".join(parts)
