"""Finds the messages that plainly keep the rules of their .proto file, without protovalidate.

Nearly all requests are valid, and nearly all rules are of a few kinds: a length, a pattern of ASCII
characters, a range. For message types with such rules there is a Python function. protovalidate
takes two to three times as long; in a server, where the processor's caches have lost its code
between two calls, five times.

What is not found valid here may still be valid: protovalidate decides, and it alone refuses. It
also decides if a field has a rule of another kind; for an optional field, only if it is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias, cast

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

Check: TypeAlias = Callable[[Any], object]
"""Returns something true if a value plainly keeps its rules."""

# Only syntax that means the same in Python as in the library's regular expressions and in CEL.
_PATTERN: Final = re.compile(
    r"\^(?P<character>\[(?:[A-Za-z0-9]-[A-Za-z0-9]|[A-Za-z0-9_.:@])+-?\])(?:\+|\{(?P<count>\d+)\})\$"
)
_IN_RANGE: Final = re.compile(r"this\.(\w+) >= (-?\d+) && this\.\1 <= (-?\d+)")
_UNIQUE: Final = re.compile(r"this\.size\(\) > \d+ \|\| this\.map\((\w+), \1\.(\w+)\)\.unique\(\)")

_LARGEST: Final = 2**63 - 1
"""No number, length or count is larger."""


class _OtherRule(Exception):  # noqa: N818 - no fault: protovalidate has the rule
    """A rule is of a kind that is not handled here."""


_NOT_PLAIN: Final = (_OtherRule, re.error, OverflowError, RecursionError)
"""What building a check raises for rules that protovalidate has to decide: other rules, ranges that
hold nothing, and types that contain themselves."""


class _Field(NamedTuple):
    """A field and the check of its value."""

    value: Callable[[Any], Any]
    check: Check
    optional_name: str = ""
    """Its name if it may be left out or missing; '' if it always has a value."""
    is_required: bool = False


class PlainRules(dict[type[Message], Check]):
    """The check of each message type, built when it is first asked for."""

    def __missing__(self, type_: type[Message]) -> Check:
        try:
            check = _of_message(cast(Descriptor, type_.DESCRIPTOR)) or _always
        except _NOT_PLAIN:
            check = _never
        self[type_] = check
        return check


def _always(_value: object) -> bool:
    return True


def _never(_value: object) -> bool:
    return False


# -- checks by what they are of: None without a rule; each may raise _OtherRule --------------------


def _of_message(descriptor: Descriptor, cel: Iterable[validate_pb2.Rule] = ()) -> Check | None:
    """``cel``: rules of the field that holds the message."""
    _allow(descriptor.GetOptions().Extensions[validate_pb2.message])
    for oneof in descriptor.oneofs:
        _allow(oneof.GetOptions().Extensions[validate_pb2.oneof])
    fields = [_in_range(rule.expression) for rule in cel]
    for field in descriptor.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        try:
            check = _of_list(field, rules) if field.is_repeated else _of_value(field, rules)
        except _NOT_PLAIN:
            check = _never
        if check is not None or rules.required:
            optional_name = field.name if field.has_presence else ""
            value = attrgetter(field.name)
            fields.append(_Field(value, check or _always, optional_name, rules.required))
    return _of_fields(fields) if fields else None


def _of_fields(fields: Sequence[_Field]) -> Check:
    # Hardly any of the values and checks is a function that is written in Python.
    def check_all(message: Message) -> bool:
        for value, check, optional_name, is_required in fields:
            if optional_name and not message.HasField(optional_name):
                if is_required:
                    return False
            elif not check(value(message)):
                return False
        return True

    return check_all


def _of_list(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Check | None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        raise _OtherRule
    _allow(rules, "repeated", "cel")
    _allow(rules.repeated, "min_items", "max_items", "items")
    most = rules.repeated.max_items if rules.repeated.HasField("max_items") else _LARGEST
    counts = range(rules.repeated.min_items, most + 1)
    keys = [_unique_key(rule.expression, field) for rule in rules.cel]
    items = rules.repeated.items
    check_item = None if items.ignore == validate_pb2.IGNORE_ALWAYS else _of_value(field, items)

    def check_list(values: Collection[Any]) -> bool:
        if len(values) not in counts:
            return False
        for key in keys:
            if len(set(map(key, values))) < len(values):
                return False
        return check_item is None or all(map(check_item, values))

    return check_list


def _of_value(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Check | None:
    if field.message_type is not None:
        _allow(rules, "required", "cel")
        return _of_message(field.message_type, rules.cel)
    if field.has_presence:
        _allow(rules, "required", "string", "int32", "int64")
    else:
        # There, "required" is about the value.
        _allow(rules, "string", "int32", "int64")
    if rules.HasField("string"):
        return _of_string(rules.string)
    kind = rules.WhichOneof("type")
    return None if kind is None else _of_number(getattr(rules, kind))


def _of_string(rules: validate_pb2.StringRules) -> Check:
    _allow(rules, "min_len", "max_len", "pattern")
    character, least, most = "(?s:.)", rules.min_len, ""
    if rules.HasField("max_len"):
        most = str(rules.max_len)
    if rules.HasField("pattern"):
        found = _PATTERN.fullmatch(rules.pattern)
        if found is None or (found["count"] and (least or most)):
            raise _OtherRule
        character, least = found["character"], max(least, 1)
        if found["count"]:
            least, most = int(found["count"]), found["count"]
    return re.compile(f"{character}{{{least},{most}}}").fullmatch


def _of_number(rules: validate_pb2.Int32Rules | validate_pb2.Int64Rules) -> Check:
    _allow(rules, "gte", "lte")
    least = rules.gte if rules.HasField("gte") else -_LARGEST - 1
    most = rules.lte if rules.HasField("lte") else _LARGEST
    return range(least, most + 1).__contains__


# -- rules in CEL ----------------------------------------------------------------------------------


def _in_range(expression: str) -> _Field:
    """The number in the field's message whose range the rule states."""
    found = _IN_RANGE.fullmatch(expression)
    if found is None:
        raise _OtherRule
    name, least, most = found.groups()
    return _Field(attrgetter(name), range(int(least), int(most) + 1).__contains__)


def _unique_key(expression: str, field: FieldDescriptor) -> Callable[[Any], Any]:
    """The field of a list's items that the rule makes unique in the list."""
    found = _UNIQUE.fullmatch(expression)
    if found is None or field.message_type is None:
        raise _OtherRule
    name = found[2]
    if field.message_type.fields_by_name[name].message_type is not None:
        raise _OtherRule  # messages cannot be in a set
    return attrgetter(name)


def _allow(rules: Message, *names: str) -> None:
    """Raise _OtherRule if one is set that is not named here."""
    for field, _ in rules.ListFields():
        if field.is_extension or field.name not in names:
            raise _OtherRule
