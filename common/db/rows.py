"""Dataclasses from rows whose columns have the names of their fields."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, TypeVar

import sqlalchemy as sa

T = TypeVar("T")


def from_row(type_: type[T], row: sa.Row[Any], **fields: object) -> T:
    """A dataclass from a row; ``fields`` are those whose column has another name or type."""
    columns = {name: getattr(row, name) for name in _FIELDS[type_] if name not in fields}
    return type_(**columns, **fields)


class _Fields(dict[type, tuple[str, ...]]):
    """The names of each dataclass's fields, looked up once."""

    def __missing__(self, type_: type) -> tuple[str, ...]:
        names = tuple(field.name for field in dataclasses.fields(type_) if field.init)
        self[type_] = names
        return names


_FIELDS: Final = _Fields()
