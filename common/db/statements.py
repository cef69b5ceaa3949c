"""Statements: written with SQLAlchemy Core, compiled once, run by the driver itself.

SQLAlchemy's own execution costs a statement about four times what the driver's does (``fetch`` of
asyncpg: 29 microseconds of CPU for a row by its key). Here a statement is compiled when it is first
used, and prepared once in each session. Its values go to the driver as they are:

    _ONE = sa.select(accounts).where(accounts.c.user_id == sa.bindparam("user_id"))
    row = (await connection.execute(_ONE, {"user_id": user_id})).one_or_none()

Values of every type are the driver's, but a uuid, which is text as in the models, and JSON, which
is text for the store's own parser. A statement whose text depends on the number of values (an
expanding IN) is refused: arrays take its place (``common.db.unnest``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine.default import DefaultDialect

if TYPE_CHECKING:
    from common.db.connections import Session

COMPILED_MAX: Final = 1_024
"""Statements that are kept compiled: a service has fewer than a hundred."""

Parameters: TypeAlias = Mapping[str, object]

_DIALECT: Final[DefaultDialect] = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_NONE: Final[Parameters] = {}


class Row(tuple[Any, ...]):
    """A row: a tuple that has its values as attributes too, by the names of the columns."""

    __slots__ = ()
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Rows(list[Row]):
    """The rows that a statement returned, and how many it found or changed."""

    __slots__ = ("_status",)

    def __init__(self, rows: Iterable[Row], status: str) -> None:
        super().__init__(rows)
        self._status = status

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement returned or changed."""
        return int(self._status.rpartition(" ")[2])

    def all(self) -> list[Row]:
        return self

    def one_or_none(self) -> Row | None:
        """The only row, or None. Raises LookupError if there are more."""
        if len(self) > 1:
            raise LookupError(f"{len(self)} rows")
        return self[0] if self else None

    def one(self) -> Row:
        """The only row. Raises LookupError if there is none, or more."""
        row = self.one_or_none()
        if row is None:
            raise LookupError("no row")
        return row

    def scalar_one(self) -> Any:
        """The first value of the only row. Raises LookupError."""
        return self.one()[0]

    def scalars(self) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in self]


@dataclass(frozen=True, eq=False, slots=True)
class Compiled:
    """A statement as the driver takes it."""

    sql: str
    arguments: Sequence[tuple[str | None, object]]
    """For each parameter its name, or None and its constant value."""

    def values(self, parameters: Parameters) -> list[object]:
        """The values of the parameters, in order. Raises KeyError for one that has none."""
        return [value if name is None else parameters[name] for name, value in self.arguments]


@lru_cache(COMPILED_MAX)
def compiled(statement: sa.Executable) -> Compiled:
    """The compiled statement. Raises TypeError for one that depends on its values."""
    made = cast(sa.ClauseElement, statement).compile(dialect=_DIALECT)
    assert isinstance(made, sa.sql.compiler.SQLCompiler)
    if made.post_compile_params or made.literal_execute_params:
        raise TypeError(f"an IN of unknown length, use an array: {made.string}")
    constants = made.construct_params(_check=False)
    arguments = []
    for name in made.positiontup or ():
        bind = made.binds[name]
        arguments.append((bind.key, None) if bind.required else (None, constants[name]))
    return Compiled(made.string, arguments)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement that is prepared in one session."""

    statement: asyncpg.prepared_stmt.PreparedStatement
    to_row: Callable[[Iterable[object]], Row]

    @classmethod
    def of(cls, statement: asyncpg.prepared_stmt.PreparedStatement) -> Prepared:
        columns = statement.get_attributes()
        uuids = tuple(at for at, column in enumerate(columns) if column.type.name == "uuid")
        return cls(statement, _to_row(tuple(column.name for column in columns), uuids))


@lru_cache(COMPILED_MAX)
def _to_row(names: tuple[str, ...], uuids: tuple[int, ...]) -> Callable[[Iterable[object]], Row]:
    """What makes a row of these columns from the driver's; ``uuids``: which of them are uuids."""
    values = {name: property(itemgetter(at)) for at, name in enumerate(names)}
    make = partial(tuple.__new__, type("Row", (Row,), {"__slots__": (), **values}))
    if not uuids:
        return make

    def with_text(record: Iterable[object]) -> Row:
        row = list(record)
        for at in uuids:
            if row[at] is not None:
                row[at] = str(row[at])
        return make(row)

    return with_text


class Connection:
    """A session of a pool, for as long as it is used by one task.

    In autocommit mode each statement is its own transaction. After ``begin`` the next statement
    opens one; a block of ``Transactions.begin`` commits it.
    """

    __slots__ = ("_opening", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._opening: Sequence[sa.Executable] | None = None

    async def execute(self, statement: sa.Executable, parameters: Parameters = _NONE) -> Rows:
        """Run the statement. Raises the driver's errors (``common.db.errors`` classifies them)."""
        if self._opening is not None:
            await self._open()
        one = compiled(statement)
        values = one.values(parameters)
        prepared = self.session.prepared.get(one)
        if prepared is None:
            prepared = Prepared.of(await self.session.prepare(one.sql))
            self.session.prepared[one] = prepared
        records = await prepared.statement.fetch(*values)
        return Rows(map(prepared.to_row, records), prepared.statement.get_statusmsg())

    async def scalar(self, statement: sa.Executable, parameters: Parameters = _NONE) -> Any:
        """The first value of the first row, or None."""
        rows = await self.execute(statement, parameters)
        return rows[0][0] if rows else None

    # -- transactions ----------------------------------------------------------------------------

    def begin(self, *opening: sa.Executable) -> None:
        """Let the next statement open a transaction, in which those of ``opening`` come first."""
        self._opening = opening

    async def _open(self) -> None:
        opening, self._opening = self._opening, None
        try:
            await self.session.execute(_BEGIN)
            for statement in opening or ():
                await self.execute(statement)
        except BaseException:
            # Nothing of the block may run outside its transaction, even if it ignores this.
            self.session.terminate()
            raise

    def in_transaction(self) -> bool:
        """Whether there is a transaction to commit."""
        if self._opening is not None or self.session.is_closed():
            return True  # COMMIT fails if the session is closed
        return bool(self.session.is_in_transaction())

    async def commit(self) -> None:
        """Commit, without a time limit of the driver (``common.db.transactions`` says why)."""
        self._opening = None
        if not self.session.is_closed() and not self.session.is_in_transaction():
            return
        status = await self.session.execute("COMMIT", timeout=float("inf"))
        if status != "COMMIT":
            raise RolledBack


class RolledBack(Exception):  # noqa: N818 - what the server did
    """COMMIT undid the transaction, since an error in it was ignored. A defect of Tally."""
