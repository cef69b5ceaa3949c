"""Lists by creation time and id, newest first: the statement and its parameters."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from common.paging import Page, time_position


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
