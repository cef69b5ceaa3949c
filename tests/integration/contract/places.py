"""The strings of a request, also those in its messages and lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from tests.integration.contract.valid_requests import copy_of
from tests.support.contract import BULK

Step = tuple[str, int | None]
"""A field, and the index if it is repeated."""


@dataclass(frozen=True)
class Place:
    """One string of a method's request."""

    method: MethodDescriptor
    field: FieldDescriptor
    steps: tuple[Step, ...]

    @property
    def in_item(self) -> bool:
        """Whether an item of a bulk call has it: its refusal is in the response."""
        return self.method.name in BULK and self.steps[0][0] == "items"

    @property
    def path(self) -> str:
        """The field as a refusal names it; that of an item is the one of the single call."""
        steps = list(self.steps)
        if self.in_item:
            steps = [step for step in steps[1:] if step[0] not in {"charge", "deduct", "refund"}]
        return ".".join(name if at is None else f"{name}[{at}]" for name, at in steps)

    def with_text(self, request: Message, text: str) -> Any:
        """The request with this text in the place; of items only the one that has it."""
        changed = message = copy_of(request)
        *outer, (name, at) = self.steps
        for step, index in outer:
            message = getattr(message, step)
            message = message if index is None else message[index]
        if at is None:
            setattr(message, name, text)
        else:
            getattr(message, name)[at] = text
        if self.in_item:
            item = changed.items[self.steps[0][1]]
            changed.ClearField("items")
            changed.items.append(item)
        return changed


def places(method: MethodDescriptor, valid: Message) -> list[Place]:
    """The strings of the method, in a request that has every message."""
    return [Place(method, field, steps) for field, steps in _strings(valid, ())]


def _strings(
    message: Message, outer: tuple[Step, ...]
) -> Iterator[tuple[FieldDescriptor, tuple[Step, ...]]]:
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.type == field.TYPE_STRING:
            last = len(value) - 1 if field.is_repeated else None
            if last != -1:
                yield cast(FieldDescriptor, field), (*outer, (field.name, last))
        elif field.message_type is None:
            continue
        elif field.is_repeated:
            for at, each in enumerate(value):
                yield from _strings(each, (*outer, (field.name, at)))
        elif message.HasField(field.name):
            yield from _strings(value, (*outer, (field.name, None)))
