"""The SQL that services in this process execute, by transaction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from common.db.connections import Session
from common.db.statements import Connection, Parameters, Rows, compiled
from common.locking.strategy import RowStrategy

Transaction = list[str]
"""The statements of a transaction, without those that wrote no row."""


@contextmanager
def recorded_transactions() -> Iterator[list[Transaction]]:
    """The transactions that are committed during the block."""
    committed: list[Transaction] = []
    open_: dict[Session, Transaction] = {}
    execute, commit, begin = Connection.execute, Connection.commit, Connection.begin

    async def on_execute(
        connection: Connection, statement: sa.Executable, *parameters: Parameters
    ) -> Rows:
        rows = await execute(connection, statement, *parameters)
        if connection.session.is_in_transaction() and rows.rowcount != 0:
            open_.setdefault(connection.session, []).append(compiled(statement).sql)
        return rows

    async def on_commit(connection: Connection) -> None:
        await commit(connection)
        committed.append(open_.pop(connection.session, []))

    def on_begin(connection: Connection, *opening: sa.Executable) -> None:
        # What the session did before was rolled back.
        open_.pop(connection.session, None)
        begin(connection, *opening)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "execute", on_execute)
        patch.setattr(Connection, "commit", on_commit)
        patch.setattr(Connection, "begin", on_begin)
        yield committed


@contextmanager
def recorded_statements(id_: str) -> Iterator[list[str]]:
    """The statements of the block that have this id among their parameters, rows or not."""
    found: list[str] = []
    execute = Connection.execute

    async def on_execute(
        connection: Connection, statement: sa.Executable, *parameters: Parameters
    ) -> Rows:
        if id_ in str(parameters):
            found.append(compiled(statement).sql)
        return await execute(connection, statement, *parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "execute", on_execute)
        yield found


def row_strategies(transaction: Transaction, table: str, compared: str) -> set[RowStrategy]:
    """What the transaction does so that no other changes its rows of ``table`` meanwhile.

    ``compared``: the column that a conditional write compares. Empty if it writes no such row.
    """
    lock = re.compile(rf"\bFOR (NO KEY )?UPDATE OF {table}\b")
    write = re.compile(rf"\b(UPDATE|DELETE FROM) {table}\b|\bINTO {table}\b.* DO UPDATE", re.DOTALL)
    # Several writes may be one statement (``common.db.writes``).
    transaction = [part for one in transaction for part in re.split(r"\bwrite_\d+ AS ", one)]
    for number, statement in enumerate(transaction):
        if not write.search(statement):
            continue
        found = set()
        conditional = bool(
            re.search(rf"\b{table}\.{compared} (=|IS NOT DISTINCT FROM) ", statement)
        )
        # A conditional write may itself lock its rows in ascending order; that decides nothing.
        before = transaction[: number if conditional else number + 1]
        locked = any(map(lock.search, before))
        if locked:
            found.add(RowStrategy.FOR_UPDATE)
        if conditional:
            version = compared == "version" and not locked
            found.add(RowStrategy.VERSION if version else RowStrategy.CONDITIONAL_UPDATE)
        return found
    inserts = any(re.search(rf"\bINSERT INTO {table}\b", each) for each in transaction)
    return {RowStrategy.INSERT} if inserts else set()
