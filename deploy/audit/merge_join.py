"""A merge join: two streams ordered by key, side by side.

One row of each is in memory at a time, so tables of any size can be compared across databases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

Key = tuple[str, ...]
"""Compared by code points, as COLLATE "C" in PostgreSQL and BINARY in SQLite sort."""

A = TypeVar("A")
B = TypeVar("B")


async def stream(
    connection: AsyncConnection, statement: sa.TextClause, columns: int, **parameters: float
) -> AsyncIterator[tuple[Key, sa.Row[Any]]]:
    """The rows of a statement, with their first ``columns`` columns as the key."""
    async with connection.stream(statement, parameters) as result:
        async for row in result:
            yield tuple(row[:columns]), row


async def merge_join(
    left: AsyncIterator[tuple[Key, A]], right: AsyncIterator[tuple[Key, B]]
) -> AsyncIterator[tuple[Key, A | None, B | None]]:
    """Each key of either stream, ascending, with its row on each side or None.

    Rows with the same key are joined one by one: a second row of one side only has no partner.
    """
    a, b = await anext(left, None), await anext(right, None)
    while a is not None or b is not None:
        key = min(head[0] for head in (a, b) if head is not None)
        left_row: A | None = None
        right_row: B | None = None
        if a is not None and a[0] == key:
            left_row, a = a[1], await anext(left, None)
        if b is not None and b[0] == key:
            right_row, b = b[1], await anext(right, None)
        yield key, left_row, right_row
