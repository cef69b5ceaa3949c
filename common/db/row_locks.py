"""Row locks of a batch: always in ascending key order, waiting for other transactions or not.

Two batches that lock the same rows in different orders deadlock. So the rows are locked in a CTE
that sorts before it locks, and every statement that writes rows runs after it.

What must be as new as the locked rows is read by a statement after them: a statement sees what was
committed when it began, and of a row that it locks what has been committed since. If no row has
changed since, the statement that locks has read it as well (``AlsoRead``), and a round trip is
saved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa

from common.db.statements import Connection, Row
from common.db.unnest import arrays_of_tuples, looked_up, same, unnest

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
W = TypeVar("W")

TIME: Final = sa.DateTime(timezone=True)
CLOCK: Final = sa.func.clock_timestamp(type_=TIME)
"""The database's clock now, not at the start of the transaction."""
_READ_CLOCK: Final = sa.select(CLOCK)


def locked(
    table: sa.Table,
    selected: sa.Select[Any],
    *,
    order_by: Sequence[sa.ColumnElement[Any]],
    skip_locked: bool,
    name: str = "locked",
) -> sa.CTE:
    """The rows that ``selected`` returns, locked FOR NO KEY UPDATE in the order of ``order_by``.

    It is the row lock that an UPDATE takes. ``skip_locked``: leave out rows that another
    transaction has locked instead of waiting for them.
    """
    return (
        selected.order_by(*order_by)
        .with_for_update(of=table, key_share=True, skip_locked=skip_locked)
        .cte(name)
        # PostgreSQL would otherwise inline the CTE, and the plan of the outer query decides.
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


@dataclass(frozen=True, slots=True)
class Locked(Generic[K, V]):
    """The rows that a batch has locked, or read."""

    found: dict[K, V]
    blocked: frozenset[K]
    """Keys of rows that exist but are locked by another transaction."""
    now: datetime | None
    """The database's clock, read after the rows were locked; None if no row was found."""

    def map(self, convert: Callable[[V], W]) -> Locked[K, W]:
        """The same with what ``convert`` makes of each row."""
        found = {key: convert(row) for key, row in self.found.items()}
        return Locked(found, self.blocked, self.now)


@dataclass(slots=True, eq=False)
class AlsoRead:
    """What a statement that locks rows reads besides, if no row changed while it did.

    A transaction that wrote it and only locked the rows can be missed: what is decided by it needs
    a guard of its own. An idempotency record has its key: who writes it second decides again.
    """

    column: sa.ScalarSelect[Any]
    """One value, whatever the rows are."""
    parameters: Mapping[str, object]
    is_read: bool = False
    """Whether ``value`` is as new as the rows that were locked last."""
    value: str | None = None


class RowLocks(Generic[K]):
    """The statements that lock the wanted rows of one table.

    ``K`` is the type of a key: a tuple, or the column's value if the key has one column.
    """

    def __init__(
        self,
        table: sa.Table,
        *key: str,
        matches: Callable[[sa.TableValuedAlias], sa.ColumnElement[bool]] | None = None,
        columns: Sequence[str] | None = None,
        beside: Callable[[sa.FromClause], Sequence[sa.ColumnElement[Any]]] = lambda _rows: (),
    ) -> None:
        """``key``: the columns that name a row, and order the locks.

        ``matches``: the condition that joins the table to the wanted keys, if not equality; the
        first column of the key has to be equal.
        ``columns``: what the rows have, if not all columns. ``beside``: what the rows have besides,
        such as rows of another table that belong to one; it is read, not locked.
        """
        # One column's value, or a tuple of several.
        self._key_of: Callable[[Row], K] = attrgetter(*key)  # type: ignore[assignment]
        ordered = [table.c[name] for name in key]
        self._wanted = unnest("wanted", *ordered)
        condition = (matches or partial(same, table))(self._wanted)
        # The first column is that of the wanted key, which is equal: in the order of the table's
        # own columns, the whole table could be read (``unnest.looked_up``).
        order_by = [self._wanted.c[key[0]], *ordered[1:]]
        selected = list(table.c) if columns is None else [table.c[name] for name in columns]
        rows = sa.select(*selected).join_from(self._wanted, table, condition)

        def lock(*, skip_locked: bool) -> sa.Select[Any]:
            # The clock is read outside the CTE, when the rows are locked: the SELECT list of a
            # locking query is computed before it waits.
            cte = locked(table, rows, order_by=order_by, skip_locked=skip_locked)
            return sa.select(cte, CLOCK.label("now"), *beside(cte))

        def lock_and_read(column: sa.ScalarSelect[Any]) -> sa.Select[Any]:
            # A row as the statement sees it has the transaction (xmin) that the locked one has,
            # unless it has been updated since.
            versioned = rows.add_columns(_writer_of(table).label("writer"))
            cte = locked(table, versioned, order_by=order_by, skip_locked=True)
            seen = table.alias("seen")
            unchanged = sa.exists().where(
                *(looked_up(seen.c[name], cte.c[name]) for name in key),
                _writer_of(seen) == cte.c.writer,
            )
            # Once, and not beside every row.
            once = sa.case((sa.func.row_number().over() == 1, column))
            return sa.select(
                cte,
                CLOCK.label("now"),
                *beside(cte),
                unchanged.label("unchanged"),
                once.label("also_read"),
            )

        self._lock_and_read = cache(lock_and_read)
        self._lock = lock(skip_locked=False)
        self._lock_free = lock(skip_locked=True)
        self._read = rows.add_columns(CLOCK.label("now"), *beside(table))

    async def lock(
        self,
        connection: Connection,
        keys: Collection[K],
        *,
        wait_for_locks: bool,
        also: AlsoRead | None = None,
    ) -> Locked[K, Row]:
        """Lock the rows with these keys that exist, and find out which of them are blocked.

        With ``wait_for_locks`` the statement waits for other transactions, up to lock_timeout.
        Then a row is blocked only if it was inserted in between; the next attempt finds it.

        ``also`` is read if nothing is waited for. Without keys it stays as it is.
        """
        if wait_for_locks or also is None or not keys:
            statement = self._lock if wait_for_locks else self._lock_free
            locked = await self._execute(connection, statement, keys)
        else:
            statement = self._lock_and_read(also.column)
            locked = await self._execute(connection, statement, keys, also.parameters)
            rows = locked.found.values()
            also.is_read = bool(rows) and all(row.unchanged for row in rows)
            also.value = next((row.also_read for row in rows if row.also_read is not None), None)
        if locked.found.keys() >= set(keys):
            return locked
        # A missing row does not exist, or it was skipped.
        existing = await self.read(connection, set(keys) - locked.found.keys())
        return replace(locked, blocked=frozenset(existing.found) - locked.found.keys())

    async def read(self, connection: Connection, keys: Collection[K]) -> Locked[K, Row]:
        """The rows with these keys as last committed, without locks."""
        return await self._execute(connection, self._read, keys)

    async def _execute(
        self,
        connection: Connection,
        statement: sa.Select[Any],
        keys: Collection[K],
        others: Mapping[str, object] = MappingProxyType({}),
    ) -> Locked[K, Row]:
        if not keys:
            return Locked({}, frozenset(), None)
        rows = (await connection.execute(statement, {**self._parameters(keys), **others})).all()
        now = max((row.now for row in rows), default=None)
        return Locked({self._key_of(row): row for row in rows}, frozenset(), now)

    def _parameters(self, keys: Collection[K]) -> dict[str, str]:
        ordered = [key if isinstance(key, tuple) else (key,) for key in keys]
        return arrays_of_tuples(self._wanted, ordered)


def _writer_of(table: sa.FromClause) -> sa.ColumnElement[Any]:
    """The transaction that wrote a row, which every row has in a column of the system."""
    name = table.name  # type: ignore[attr-defined]
    return sa.literal_column(f"{name}.xmin")


async def read_clock(connection: Connection) -> datetime:
    """The database's clock, for batches that lock no row."""
    now: datetime = (await connection.execute(_READ_CLOCK)).scalar_one()
    return now
