"""Two ordered streams side by side: each key of either, with what each has of it.

Nothing is held but the rows at hand, so books of any size can be compared across databases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

Key = tuple[str, ...]
"""Compared by code points, as COLLATE "C" and SQLite's BINARY sort."""

A = TypeVar("A")
B = TypeVar("B")


class OutOfOrder(Exception):  # noqa: N818 - a defect of the statement
    """A stream is not in ascending order."""


async def rows(
    connection: AsyncConnection, sql: str, columns: int
) -> AsyncIterator[tuple[Key, sa.Row[Any]]]:
    """A statement's rows by their first ``columns`` columns, read through a cursor."""
    async with connection.stream(sa.text(sql)) as result:
        async for row in result:
            yield tuple(row[:columns]), row


async def listed(pairs: Iterator[tuple[Key, A]]) -> AsyncIterator[tuple[Key, A]]:
    """A stream out of what is at hand without waiting."""
    for pair in pairs:
        yield pair


async def side_by_side(
    left: AsyncIterator[tuple[Key, A]], right: AsyncIterator[tuple[Key, B]]
) -> AsyncIterator[tuple[Key, A | None, B | None]]:
    """Each key, ascending, with its row on either side or None.

    A key that comes twice on one side meets its match once, and then nobody.
    """
    ours, theirs = await _next(left, None), await _next(right, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and ours[0] < theirs[0]):
            assert ours is not None
            yield ours[0], ours[1], None
            ours = await _next(left, ours[0])
        elif ours is None or theirs[0] < ours[0]:
            yield theirs[0], None, theirs[1]
            theirs = await _next(right, theirs[0])
        else:
            yield ours[0], ours[1], theirs[1]
            ours, theirs = await _next(left, ours[0]), await _next(right, theirs[0])


async def _next(stream: AsyncIterator[tuple[Key, A]], last: Key | None) -> tuple[Key, A] | None:
    found = await anext(stream, None)
    if found is not None and last is not None and found[0] < last:
        raise OutOfOrder(f"{found[0]} after {last}")
    return found
