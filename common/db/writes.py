"""Several writes in one statement: one round trip to the server instead of one for each.

    WITH write_0 AS (UPDATE … RETURNING 1), write_1 AS (INSERT … RETURNING 1)
    SELECT (SELECT count(*) FROM write_0), (SELECT count(*) FROM write_1)

Only for writes of rows that the transaction has locked, that a locked row protects, or that are
new, if none of them reads what another one writes, or is checked against it: all of them see the
rows as before the statement. A foreign key may be, since PostgreSQL checks it when the whole
statement is done.

PostgreSQL 18 runs each to its end before the next one, in their order, but does not promise that.
What is written does not depend on it; only how often inserts of the same rows deadlock does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import sqlalchemy as sa

from common.db.errors import StaleRead
from common.db.statements import Connection, Parameters

COMBINATIONS_MAX: Final = 256
"""Combinations of statements that are kept: a lane has a few writes, each there or not."""

Statement: TypeAlias = sa.Update | sa.Delete | sa.Insert


@dataclass(frozen=True, slots=True)
class Write:
    """A write of a whole batch, by names of parameters that no other write of it has."""

    statement: Statement
    parameters: Parameters
    rows: int | None
    """How many rows it has to change, if that proves that they were as the batch read them."""
    lost: type[Exception] = StaleRead
    """What is raised if it changes fewer."""


async def execute_together(connection: Connection, writes: Sequence[Write]) -> None:
    """Run the writes in one statement. Raises what the first that changed too few rows names."""
    if not writes:
        return
    parameters = {name: value for one in writes for name, value in one.parameters.items()}
    assert len(parameters) == sum(len(one.parameters) for one in writes), "a name occurs twice"
    statement = _together(*(one.statement for one in writes))
    changed = (await connection.execute(statement, parameters)).one()
    for one, count in zip(writes, changed, strict=True):
        if one.rows not in {None, count}:
            raise one.lost


@lru_cache(COMBINATIONS_MAX)
def _together(*statements: Statement) -> sa.Select[tuple[int, ...]]:
    parts = [
        statement.returning(sa.literal_column("1")).cte(f"write_{number}")
        for number, statement in enumerate(statements)
    ]
    # Named by position: a row has its values by name too.
    counts = [
        sa.select(sa.func.count()).select_from(part).scalar_subquery().label(f"count_{number}")
        for number, part in enumerate(parts)
    ]
    return sa.select(*counts)
