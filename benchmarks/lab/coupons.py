"""The strategies of first-come coupons (R3): one campaign, which every request wants."""

from __future__ import annotations

from typing import Final

import asyncpg

from benchmarks.lab.notes import CONFLICTS, FIRST_CHECK
from benchmarks.lab.size import Request
from benchmarks.lab.tools import Conflict, Refused, Tools
from common.locking.key_lease import Hold

CHECK: Final = (
    "SELECT quantity, issued, EXISTS"
    " (SELECT FROM coupons WHERE campaign = $1 AND user_id = $2) AS has_one"
    " FROM campaigns WHERE id = $1"
)
LOCK_CAMPAIGN: Final = "SELECT quantity, issued FROM campaigns WHERE id = $1 FOR UPDATE"
HAS_ONE: Final = "SELECT EXISTS (SELECT FROM coupons WHERE campaign = $1 AND user_id = $2)"
INSERT: Final = "INSERT INTO coupons (campaign, user_id, number) VALUES ($1, $2, $3)"
INSERT_ONCE: Final = f"{INSERT} ON CONFLICT DO NOTHING"
COUNT_UP: Final = "UPDATE campaigns SET issued = issued + 1 WHERE id = $1"
COUNT_TO: Final = "UPDATE campaigns SET issued = $2 WHERE id = $1"
COUNT_UP_BELOW: Final = f"{COUNT_UP} AND issued < quantity"
ATTEMPTS_MAX: Final = 50


async def first_check(tools: Tools, request: Request) -> asyncpg.Record:
    """Read without a lock. Raises Refused if no coupon is left, or the user has one."""
    row = await tools.pool.fetchrow(CHECK, request.thing, request.user)
    if row["has_one"] or row["issued"] >= row["quantity"]:
        tools.notes.counts[FIRST_CHECK] += 1
        raise Refused
    return row


async def none(tools: Tools, request: Request) -> None:
    """Only the counter is read; nobody looks whether the user has a coupon."""
    async with tools.transaction() as connection:
        row = await connection.fetchrow(CHECK, request.thing, request.user)
        if row["issued"] >= row["quantity"]:
            raise Refused
        await connection.execute(INSERT, request.thing, request.user, None)
        await connection.execute(COUNT_TO, request.thing, row["issued"] + 1)


async def check_only(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.transaction() as connection:
        await connection.execute(INSERT, request.thing, request.user, None)
        await connection.execute(COUNT_UP, request.thing)


async def unique_user(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.transaction() as connection:
        if await connection.execute(INSERT_ONCE, request.thing, request.user, None) != "INSERT 0 1":
            tools.notes.counts[CONFLICTS] += 1
            raise Refused
        await connection.execute(COUNT_UP, request.thing)


async def unique_number(tools: Tools, request: Request) -> None:
    """The coupon's number is the next one that was read; the constraint says whether it was."""
    for _ in range(ATTEMPTS_MAX):
        row = await first_check(tools, request)
        number = row["issued"] + 1
        async with tools.transaction() as connection:
            done = await connection.execute(INSERT_ONCE, request.thing, request.user, number)
            if done == "INSERT 0 1":
                await connection.execute(COUNT_UP, request.thing)
                return
        tools.notes.counts[CONFLICTS] += 1
    raise Conflict


async def conditional(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    await _insert_and_count(tools, request)


async def _insert_and_count(tools: Tools, request: Request) -> None:
    """The user's row first: the campaign's, which everyone wants, is held for the shortest time."""
    async with tools.transaction() as connection:
        if await connection.execute(INSERT_ONCE, request.thing, request.user, None) != "INSERT 0 1":
            tools.notes.counts[CONFLICTS] += 1
            raise Refused
        if await connection.execute(COUNT_UP_BELOW, request.thing) != "UPDATE 1":
            raise Refused


async def mark_first(tools: Tools, request: Request) -> None:
    """SET NX for each user; what is left is counted in the database."""
    if not await tools.redis.set(
        f"lab:coupon:{request.thing}:{request.user}", "1", nx=True, ex=120
    ):
        tools.notes.counts[FIRST_CHECK] += 1
        raise Refused
    await _insert_and_count(tools, request)


async def pessimistic(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.row_lock(LOCK_CAMPAIGN, request.thing) as (connection, rows):
        await _check_and_insert(connection, request, rows[0])


async def _check_and_insert(
    connection: asyncpg.Connection, request: Request, campaign: asyncpg.Record
) -> None:
    if campaign["issued"] >= campaign["quantity"]:
        raise Refused
    if await connection.fetchval(HAS_ONE, request.thing, request.user):
        raise Refused
    await connection.execute(INSERT, request.thing, request.user, None)
    await connection.execute(COUNT_TO, request.thing, campaign["issued"] + 1)


async def alone(tools: Tools, request: Request, hold: Hold | None = None) -> None:
    """As if nobody else did. Raises LockLost if the lease of ``hold`` has ended."""
    async with tools.transaction() as connection:
        campaign = await connection.fetchrow(CHECK, request.thing, request.user)
        await _check_and_insert(connection, request, campaign)
        if hold is not None:
            hold.check()


async def locked(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    async with tools.key_lock(request.thing) as hold:
        await alone(tools, request, hold)


async def queued(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    await tools.enqueue(request)


async def submitted(tools: Tools, request: Request) -> None:
    await first_check(tools, request)
    await tools.submit(request)
