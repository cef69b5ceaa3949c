"""Dataclasses from rows whose columns have the names of their fields.

A row that this release cannot read (a state or a JSON body that another release or a person wrote)
must not stop the rows beside it: ``readable`` skips it, counts it, and logs its id once;
``one_per_key`` returns the error in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import structlog
from prometheus_client import Counter

from common.db.statements import Row
from common.metrics import REGISTRY

K = TypeVar("K")
R = TypeVar("R")
T = TypeVar("T")

_UNREADABLE: Final = (ValueError, LookupError, TypeError)

LOGGED_MAX: Final = 1_000
"""Ids of unreadable rows that are remembered, so that each is logged once."""

UNREADABLE: Final = Counter(
    "tally_unreadable_rows",
    "How often a row was skipped since this release cannot read it, by kind of row.",
    ("kind",),
    registry=REGISTRY,
)
"""A store that uses ``readable`` exports its kinds from 0."""
_logged: dict[tuple[str, str], None] = {}
_log = structlog.stdlib.get_logger()


def from_row(type_: type[T], row: Row, **fields: object) -> T:
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


def readable(kind: str, rows: Iterable[Row], convert: Callable[[Row], T]) -> list[T]:
    """What ``convert`` makes of the rows, without those that it cannot read.

    ``kind`` names the rows, and with ``_id`` their id's column.
    """
    found = []
    for row in rows:
        try:
            found.append(convert(row))
        except _UNREADABLE as error:
            _report(kind, str(getattr(row, f"{kind}_id")), error)
    return found


def one_per_key(
    keys: Iterable[K], found: Mapping[K, R], convert: Callable[[R], T]
) -> list[T | Exception | None]:
    """What ``convert`` makes of each key's row, in the order of the keys; None where there is none.

    In the place of a row that it cannot read is the error: it concerns only those who asked for
    this row, and not the reads of other calls beside it.
    """
    values: list[T | Exception | None] = []
    for key in keys:
        row = found.get(key)
        try:
            values.append(None if row is None else convert(row))
        except _UNREADABLE as error:
            values.append(error)
    return values


def _report(kind: str, id_: str, error: Exception) -> None:
    UNREADABLE.labels(kind).inc()
    if (kind, id_) in _logged:
        return
    if len(_logged) >= LOGGED_MAX:
        del _logged[next(iter(_logged))]
    _logged[kind, id_] = None
    # The type only: the text of a parser's error repeats the row's content.
    _log.error("row_not_readable", kind=kind, id=id_, error=type(error).__name__)
