"""Checks a request against the protovalidate rules of its .proto file.

A rule about several fields stands at its message and has no field of its own. Its ``id`` begins
with the field to blame and a dot (``end_time.after_start_time``): a refusal always names a field.
A rule whose id begins with ``money.`` stands at a Money, whose number it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protovalidate import Validator, Violation

from common.errors import FieldViolation, InvalidFields

if TYPE_CHECKING:
    from google.protobuf.message import Message

VIOLATIONS_MAX = 10
MAP_KEY_CHARS_MAX = 40
MONEY_RULE = "money."

# One for the process: it compiles a message type's rules at first sight and keeps them.
_collect = Validator().collect_violations


def check(request: Message) -> None:
    """Raises InvalidFields naming each field that breaks a rule, at most VIOLATIONS_MAX of them.

    Descriptions are the rules' own words: values are never told back, they may be huge or secret.
    """
    violations = _collect(request)
    if violations:
        raise InvalidFields(_told(violation) for violation in violations[:VIOLATIONS_MAX])


def _told(violation: Violation) -> FieldViolation:
    proto = violation.proto
    path = _path(proto.field.elements) if proto.field else ""
    if not path:
        path = proto.rule_id.split(".", 1)[0]
    elif proto.rule_id.startswith(MONEY_RULE):
        path += ".amount_minor"
    return FieldViolation(path, proto.message or f"breaks the rule {proto.rule_id}")


def _path(elements: list[Any]) -> str:
    parts: list[str] = []
    for element in elements:
        subscript = element.subscript
        parts.append(element.field_name if subscript is None else _indexed(element, subscript))
    return ".".join(parts)


def _indexed(element: Any, subscript: Any) -> str:
    if isinstance(subscript.value, str):
        key = subscript.value[:MAP_KEY_CHARS_MAX].replace('"', "'")
        return f'{element.field_name}["{key}"]'
    return f"{element.field_name}[{subscript.value}]"
