"""Lists by creation time and id, newest first: the statement, its parameters, and its rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from common.db.statements import Connection, Row
from common.paging import Page, time_position

T = TypeVar("T")


def newest_first(
    selected: sa.Select[Any], time: sa.ColumnElement[Any], id_: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """``selected`` rows before a position, newest first; ``rows_of`` gives the parameters."""
    before = sa.tuple_(
        sa.bindparam("before_time", type_=time.type), sa.bindparam("before_id", type_=id_.type)
    )
    return (
        selected.where(sa.tuple_(time, id_) < before)
        .order_by(time.desc(), id_.desc())
        .limit(sa.bindparam("size"))
    )


def rows_of(page: Page) -> dict[str, object]:
    """The parameters of ``newest_first``: the page's rows, and one more if there is one."""
    before = time_position(page)
    return {"size": page.size + 1, "before_time": before.time, "before_id": before.id}


async def read_readable(
    connection: Connection,
    statement: sa.Select[Any],
    parameters: Mapping[str, object],
    after: Callable[[Row], Mapping[str, object]],
    convert: Callable[[Sequence[Row]], Awaitable[list[T]]],
    *,
    full: Callable[[], bool] = lambda: False,
) -> list[T]:
    """``size`` rows of the list, converted, or fewer at its end; ``size`` is one of the parameters.

    ``convert`` may leave out rows that it cannot read: the rows that follow take their place, since
    a shorter page would look like the last one. ``after``: the parameters for the rows after one.
    ``full``: whether what was converted fills a page, and no more rows are needed.
    """
    size = parameters["size"]
    assert isinstance(size, int)
    asked = dict(parameters)
    found: list[T] = []
    while True:
        rows = (await connection.execute(statement, asked)).all()
        found += await convert(rows)
        if len(rows) < size or len(found) >= size or full():
            return found[:size]
        asked |= after(rows[-1])
