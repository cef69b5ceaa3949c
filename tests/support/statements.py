"""The SQL that services in this process execute, by transaction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from common.locking.strategy import RowStrategy

Transaction = list[str]
"""The statements of a transaction, without those that wrote no row."""


@contextmanager
def recorded_transactions() -> Iterator[list[Transaction]]:
    """The transactions that are committed during the block."""
    committed: list[Transaction] = []
    open_: dict[int, Transaction] = {}

    def begin(connection: sa.Connection) -> None:
        open_[id(connection)] = []

    def execute(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if cursor.rowcount != 0 and id(connection) in open_:
            open_[id(connection)].append(statement)

    def rollback(connection: sa.Connection) -> None:
        open_.pop(id(connection), None)

    def commit(connection: sa.Connection) -> None:
        committed.append(open_.pop(id(connection), []))

    listeners: dict[str, Callable[..., None]] = {
        "begin": begin,
        "after_cursor_execute": execute,
        "rollback": rollback,
        "commit": commit,
    }
    for name, listener in listeners.items():
        event.listen(sa.Engine, name, listener)
    try:
        yield committed
    finally:
        for name, listener in listeners.items():
            event.remove(sa.Engine, name, listener)


def row_strategies(transaction: Transaction, table: str, compared: str) -> set[RowStrategy]:
    """What the transaction does so that no other changes its rows of ``table`` meanwhile.

    ``compared``: the column that a conditional write compares. Empty if it writes no such row.
    """
    lock = re.compile(rf"\bFOR (NO KEY )?UPDATE OF {table}\b")
    write = re.compile(rf"\b(UPDATE|DELETE FROM) {table}\b|\bINTO {table}\b.* DO UPDATE", re.DOTALL)
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
