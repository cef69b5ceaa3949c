"""Coupons from shares: rows over which the quantity of a campaign is split beforehand."""

from __future__ import annotations

from typing import Final

import asyncpg

from benchmarks.lab.coupons import HAS_ONE, INSERT_ONCE
from benchmarks.lab.notes import CONFLICTS, FIRST_CHECK
from benchmarks.lab.size import PROCESSES, Request
from benchmarks.lab.tools import Refused, Tools

SHARES: Final = 4 * PROCESSES
SHARES_CHECK: Final = (
    "SELECT (SELECT sum(issued) >= sum(quantity) FROM shares WHERE campaign = $1)"
    f" OR ({HAS_ONE.removeprefix('SELECT ')})"
)
DRAW: Final = (
    "UPDATE shares SET issued = issued + 1 WHERE campaign = $1 AND share = $2 AND issued < quantity"
)
LOCK_ANY: Final = (
    "SELECT share FROM shares WHERE campaign = $1 AND issued < quantity"
    " ORDER BY share LIMIT 1 FOR UPDATE SKIP LOCKED"
)
"""A statement of its own: as a part of the UPDATE it may run twice, and lock two shares."""
LOCK_SHARES: Final = "SELECT share, issued < quantity AS left FROM shares WHERE campaign = $1"


async def from_shares(tools: Tools, request: Request) -> None:
    """Draw from one of the process's own shares, then from any; sold out if all are seen empty."""
    if await tools.pool.fetchval(SHARES_CHECK, request.thing, request.user):
        tools.notes.counts[FIRST_CHECK] += 1
        raise Refused
    own = SHARES // tools.size.processes
    share = tools.process * own + request.number // tools.size.processes % own
    async with tools.transaction() as connection:
        if await _draw_free(connection, request, share):
            await _insert_drawn(connection, tools, request)
            return
    # In a transaction of its own, which has no share locked yet: an UPDATE that waited for a row,
    # and found then that its condition does not hold, has locked the row all the same.
    async with tools.transaction() as connection:
        if not await _draw_last(connection, request):
            raise Refused
        await _insert_drawn(connection, tools, request)


async def _draw(connection: asyncpg.Connection, request: Request, share: int) -> bool:
    return bool(await connection.execute(DRAW, request.thing, share) == "UPDATE 1")


async def _draw_free(connection: asyncpg.Connection, request: Request, share: int) -> bool:
    """From the share, or from any other that nobody has locked."""
    if await _draw(connection, request, share):
        return True
    other = await connection.fetchval(LOCK_ANY, request.thing)
    return other is not None and await _draw(connection, request, other)


async def _draw_last(connection: asyncpg.Connection, request: Request) -> bool:
    """From any share that is not empty, once all are locked; they are locked in one order."""
    for row in await connection.fetch(f"{LOCK_SHARES} ORDER BY share FOR UPDATE", request.thing):
        if row["left"]:
            return await _draw(connection, request, row["share"])
    return False


async def _insert_drawn(connection: asyncpg.Connection, tools: Tools, request: Request) -> None:
    """Raises Refused if the user has a coupon: then what was drawn goes back."""
    if await connection.execute(INSERT_ONCE, request.thing, request.user, None) != "INSERT 0 1":
        tools.notes.counts[CONFLICTS] += 1
        raise Refused
