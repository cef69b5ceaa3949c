"""A whole batch as the parameters of one statement: arrays that PostgreSQL unnests into rows.

A statement is built once. It takes one array per column, in one round trip however many rows, and
its text does not depend on their number, so it is prepared once.

    _wanted = unnest("wanted", *accounts.c["user_id", "currency_code"])
    _FIND = sa.select(accounts).join_from(_wanted, accounts, same(accounts, _wanted))
    await connection.execute(_FIND, arrays(_wanted, account_ids))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert

from common.db.array_text import writer_of

ColumnType: TypeAlias = type[sa.types.TypeEngine[Any]] | sa.types.TypeEngine[Any]


def unnest(name: str, /, *columns: sa.Column[Any], **others: ColumnType) -> sa.TableValuedAlias:
    """A FROM element called ``name`` with one array parameter per column.

    ``columns``: columns of a table, taken over with name and type. ``others``: types of further
    columns, by name.
    """
    shape: dict[str, ColumnType] = {str(column.key): column.type for column in columns}
    shape |= others
    # As text, which the server parses (``common.db.array_text`` says why).
    parameters = [
        sa.cast(sa.bindparam(f"{name}_{column}", type_=sa.Text), ARRAY(of_type))
        for column, of_type in shape.items()
    ]
    shaped = [sa.column(column, of_type) for column, of_type in shape.items()]
    return sa.func.unnest(*parameters).table_valued(*shaped).render_derived(name=name)


def arrays(source: sa.TableValuedAlias, rows: Iterable[object]) -> dict[str, str]:
    """The parameters of ``source``: one array per column, in the order of ``rows``.

    The rows are mappings with the columns' names, or objects with attributes of these names.
    """
    rows = list(rows)
    names = [str(column.key) for column in source.c]
    mappings = bool(rows) and isinstance(rows[0], Mapping)
    values: Callable[[Any], Any] = itemgetter(*names) if mappings else attrgetter(*names)
    # With one name, the getter returns the value and no tuple.
    return arrays_of_tuples(source, map(values, rows) if len(names) > 1 else zip(map(values, rows)))


def arrays_of_tuples(
    source: sa.TableValuedAlias, rows: Iterable[tuple[Any, ...]]
) -> dict[str, str]:
    """As ``arrays``, of rows that are tuples in the order of the columns."""
    # Transposed in C: row by row, a batch of commands would cost far more.
    columns = list(zip(*rows, strict=True)) or [()] * len(source.c)
    return {
        f"{source.name}_{column.key}": writer_of(column.type)(values)
        for column, values in zip(source.c, columns, strict=True)
    }


def same(
    table: sa.FromClause, source: sa.FromClause, names: Sequence[str] = ()
) -> sa.ColumnElement[bool]:
    """Whether a row equals one of ``source`` in the columns ``names``; default: all of source's."""
    return sa.and_(*(looked_up(table.c[name], source.c[name]) for name in names or source.c.keys()))


def looked_up(
    column: sa.ColumnElement[Any], value: sa.ColumnElement[Any]
) -> sa.ColumnElement[bool]:
    """``column = value``, for which PostgreSQL looks ``column`` up by its index.

    A join by plain equality may be planned the other way round: to read the whole table, and search
    the arrays for each row. That is cheaper while statistics say that the table has a few rows, and
    such a plan is kept while the table grows. This one does not use that an index is sorted, so
    that only a sequential scan, which is off, could read the table first. What can still read an
    index whole: ORDER BY on columns of the table, a partial index whose condition follows from the
    statement, and an index that has all columns that are read. A test plans every statement.

    The planner does not see that a key looked up so is unique. A subquery with LIMIT shows it.
    """
    return column == sa.any_(postgresql.array([value]))


def insert_from(
    table: sa.Table, source: sa.TableValuedAlias, order_by: Sequence[str] = ()
) -> Insert:
    """INSERT of all rows of ``source``, in the order of the columns ``order_by``."""
    rows = sa.select(source).order_by(*(source.c[name] for name in order_by))
    return insert(table).from_select(list(source.c.keys()), rows)
