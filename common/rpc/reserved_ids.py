"""The request_ids of a saga's steps, which only the order service may use where identity is on.

``<saga_id>:<step>``, and ``<saga_id>:<step>:undo`` for the step's compensation. An effect under
such an id belongs to a saga, and its journal must know of it. A mutation that names the id of
another request, to cancel it, would act on a saga's effect as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, TypeAlias

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from common.errors import FieldViolation, InvalidFields
from common.rpc.validation import VIOLATIONS_MAX

FORM: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[a-z_]+(:undo)?")
ITEMS: Final = "items"

Refuse: TypeAlias = Callable[[Message], None]
"""Raises InvalidFields if the request has a reserved id."""


def refusal_of_reserved_ids(request: Descriptor) -> Refuse | None:
    """The check of a method's requests; None if they have no request_id."""
    names = [name for name in request.fields_by_name if _is_request_id(name)]
    if names:
        return lambda message: _refuse(name for name in names if _is_reserved(message, name))
    items = request.fields_by_name.get(ITEMS)
    if items is not None and items.message_type is not None and _has_ids(items.message_type):
        return lambda message: _refuse(_reserved_in_items(message))
    return None


def _refuse(reserved: Iterator[str]) -> None:
    problem = "has the form of a saga's own request_id, <uuid>:<step>, which is reserved"
    violations = [FieldViolation(path, problem) for path in islice(reserved, VIOLATIONS_MAX)]
    if violations:
        raise InvalidFields(violations)


def _reserved_in_items(request: Message) -> Iterator[str]:
    for position, item in enumerate(getattr(request, ITEMS)):
        for path, message in _with_parts(item):
            for name in message.DESCRIPTOR.fields_by_name:
                if _is_request_id(name) and _is_reserved(message, name):
                    yield f"{ITEMS}[{position}].{path}{name}"


def _with_parts(item: Message) -> Iterator[tuple[str, Message]]:
    """The item, and the message of its kind if it is one of several."""
    yield "", item
    for field, value in item.ListFields():
        if field.message_type is not None and field.containing_oneof is not None:
            yield f"{field.name}.", value


def _has_ids(item: Descriptor) -> bool:
    kinds = [field.message_type for one in item.oneofs for field in one.fields]
    return any(
        _is_request_id(name)
        for kind in (item, *kinds)
        if kind is not None
        for name in kind.fields_by_name
    )


def _is_request_id(field: str) -> bool:
    return field.endswith("request_id")


def _is_reserved(message: Message, name: str) -> bool:
    return FORM.fullmatch(getattr(message, name)) is not None
