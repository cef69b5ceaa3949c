"""The SQL that services in this process execute, by transaction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from common.locking.strategy import RowStrategy


@contextmanager
def recorded_transactions() -> Iterator[list[list[str]]]:
    """The statements of each transaction that is committed during the block."""
    committed: list[list[str]] = []
    open_: dict[int, list[str]] = {}

    def begin(connection: sa.Connection) -> None:
        open_[id(connection)] = []

    def execute(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        open_.setdefault(id(connection), []).append(statement)

    def commit(connection: sa.Connection) -> None:
        committed.append(open_.pop(id(connection)))

    listeners = {"begin": begin, "before_cursor_execute": execute, "commit": commit}
    for name, listener in listeners.items():
        event.listen(sa.Engine, name, listener)
    try:
        yield committed
    finally:
        for name, listener in listeners.items():
            event.remove(sa.Engine, name, listener)


def row_strategies(
    transactions: list[list[str]], table: str, compared: str = "version"
) -> list[RowStrategy]:
    """How each transaction that writes to ``table`` keeps others from changing the same rows.

    ``compared``: the column that a conditional write compares.
    """
    return [
        _row_strategy(statements, table, compared)
        for statements in transactions
        if any(verbs(statement, table) for statement in statements)
    ]


def verbs(statement: str, table: str) -> set[str]:
    """What a statement does to the rows of a table."""
    # Not the UPDATE of FOR NO KEY UPDATE.
    return set(
        re.findall(rf"(?<!KEY )\b(INSERT|UPDATE|DELETE)(?: INTO| FROM)? {table}\b", statement)
    )


def _row_strategy(statements: list[str], table: str, compared: str) -> RowStrategy:
    locks = re.compile(rf"\bFOR (NO KEY )?UPDATE OF {table}\b")
    for number, statement in enumerate(statements):
        if verbs(statement, table) & {"UPDATE", "DELETE"}:
            if any(locks.search(before) for before in statements[:number]):
                return RowStrategy.FOR_UPDATE
            assert re.search(rf"\b{table}\.{compared} ", statement), statement
            version = compared == "version"
            return RowStrategy.VERSION if version else RowStrategy.CONDITIONAL_UPDATE
    assert not any(map(locks.search, statements)), statements
    return RowStrategy.INSERT
